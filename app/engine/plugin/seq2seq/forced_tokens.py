"""The first token of a completion and its last, where a model forces them.

As in transformers' generate, a forced token is one that is generated: all others are ruled out
where it comes. Its log probability is still the model's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from app.engine.model.decoder_tokens import decoder_tokens

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True, slots=True)
class Forced:
    """What is forced on a request: the `first` token, and the one that is number `max_tokens`.

    `output_ids` grows with what is generated.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    max_tokens: int | None
    output_ids: list[int]

    @property
    def next(self) -> tuple[int, ...]:
        """The only tokens that may come now; none where all may."""
        num_generated = len(self.output_ids)
        if self.max_tokens is not None and num_generated == self.max_tokens - 1 and self.last:
            return self.last
        return self.first if num_generated == 0 else ()


class ForcedTokens(LogitsProcessor):  # type: ignore[misc]
    """vLLM's logits processor for a model that forces tokens."""

    def __init__(
        self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool
    ) -> None:
        self._tokens = decoder_tokens(Path(vllm_config.model_config.model))
        # By the places of the requests in the batch.
        self._forced: dict[int, Forced] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._forced, batch_update, self._forced_on)

    def apply(self, logits: Tensor) -> Tensor:
        """Leave forced tokens alone in the rows where they come, of (requests, vocabulary)."""
        for place, forced in self._forced.items():
            if tokens := forced.next:
                logits[place] = -torch.inf
                logits[place, list(tokens)] = 0.0
        return logits

    def _forced_on(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> Forced | None:
        bos = self._tokens.forced_bos
        # More than the start is a decoder_prompt, or what a structure has in front.
        first = () if bos is None or len(prompt_ids or ()) > 1 else (bos,)
        last = self._tokens.last_of(params)
        return Forced(first, last, params.max_tokens, output_ids) if first or last else None
