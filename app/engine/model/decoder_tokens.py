"""The tokens that a decoder starts with, and those that are forced, as transformers' generate does.

They are in generation_config.json, without that file in config.json. What generation_config.json
has besides, as a number of beams or a least length, are defaults of transformers' own requests:
a request to softserve has others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import ModelNotLoadable

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class DecoderTokens:
    """What a decoder starts with, and what is forced.

    `forced_bos` is the first token that is generated, where nothing but `start` is before it. One
    of `forced_eos` is the last one of a completion that has as many tokens as it may have.
    """

    start: int
    forced_bos: int | None = None
    forced_eos: tuple[int, ...] = ()

    @property
    def forces_any(self) -> bool:
        return self.forced_bos is not None or bool(self.forced_eos)

    def prompt(self, decoder_ids: Sequence[int], params: "SamplingParams") -> list[int]:
        """What the decoder is given, where a request asks for it to start with these.

        A structure knows nothing of a forced token, so that it begins behind it.
        """
        has_structure = params.structured_outputs is not None
        if self.forced_bos is not None and has_structure and not decoder_ids:
            return [self.start, self.forced_bos]
        return [self.start, *decoder_ids]

    def last_of(self, params: "SamplingParams") -> tuple[int, ...]:
        """Those of `forced_eos`; none would be in place where a structure goes on, or all do."""
        if params.ignore_eos or params.structured_outputs is not None:
            return ()
        return self.forced_eos


def decoder_tokens(folder: Path) -> DecoderTokens:
    """Those of the model in a folder.

    Raises:
        ModelNotLoadable: nothing says what its decoder starts with.
    """
    config = _read(folder / "config.json")
    file = folder / "generation_config.json"
    generation = _read(file) if file.exists() else config
    starts = [each.get("decoder_start_token_id") for each in (generation, config)]
    start = next((each for each in starts if isinstance(each, int)), None)
    if start is None:
        raise ModelNotLoadable(
            f"{folder / 'config.json'} has no decoder_start_token_id: add the id that the model's "
            "decoder was trained to start with"
        )
    forced_eos = generation.get("forced_eos_token_id")
    return DecoderTokens(
        start,
        generation.get("forced_bos_token_id"),
        (forced_eos,) if isinstance(forced_eos, int) else tuple(forced_eos or ()),
    )


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_bytes())
    return content
