"""Requests to vLLM for encoder-decoder models: a prompt for the encoder, and one for the decoder.

The encoder's input is an item of a modality of its own, with its tokens and the rows of a soft
prompt in front of them. What the decoder has to start with is the request's prompt in vLLM.
The model's side is in app/engine/plugin/seq2seq.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.engine.model.decoder_tokens import decoder_tokens
from app.engine.model.precision import INT8_METHOD
from app.errors import ModelNotLoadable

if TYPE_CHECKING:
    import torch
    from vllm.inputs.engine import EncoderDecoderInput

MODALITY = "encoder_text"
# What FLAN-T5 was trained with.
DEFAULT_ENCODER_WINDOW = 512
# Of BART and MBART, as transformers has it.
DEFAULT_POSITIONS = 1024
FORCED_TOKENS = "app.engine.plugin.seq2seq.forced_tokens:ForcedTokens"
# vLLM's own on a CPU: what is encoded in a step, and decoded for new requests.
MIN_BATCHED_TOKENS = 2048
# By the modules of app/engine/plugin/seq2seq.
ARCHITECTURES = {
    "T5ForConditionalGeneration": "t5",
    "MT5ForConditionalGeneration": "t5",
    "BartForConditionalGeneration": "bart",
    "MBartForConditionalGeneration": "bart",
}
# What was saved without its head, which has the weights of the embedding.
WITHOUT_HEAD = {
    "BartModel": "BartForConditionalGeneration",
    "MBartModel": "MBartForConditionalGeneration",
}
NOT_SERVED = {
    "LongT5ForConditionalGeneration": "its encoder's tokens look at those near to them, and at "
    "averages of the others, and softserve computes attention between all of an input",
    "UMT5ForConditionalGeneration": "each of its layers has a bias of its own for distances, and "
    "softserve computes T5's, which is one for all layers of a stack",
}


def is_encoder_decoder(folder: Path) -> bool:
    """Whether the model in a folder is one."""
    return bool(_config_of(folder).get("is_encoder_decoder", False))


def check_served(folder: Path, encoder_window: int | None, context_window: int | None) -> None:
    """Refuse an encoder-decoder model that cannot be served, with the reason.

    Raises:
        ModelNotLoadable: its architecture is not known, or what its decoder starts with, or a
            window is larger than it has positions.
    """
    architecture_of(folder)
    decoder_tokens(folder)
    most = num_positions(folder)
    windows = {"--encoder-window": encoder_window, "--context-window": context_window}
    for option, window in windows.items():
        if most is not None and window is not None and window > most:
            raise ModelNotLoadable(
                f"{option} is {window:,}, and {folder} has learned {most:,} positions for each of "
                f"its stacks: lower it to {most:,}, or leave it out"
            )


def check_precision(folder: Path, quantization: str | None) -> None:
    """Raises `ModelNotLoadable` where weights would be made INT8."""
    if quantization == INT8_METHOD:
        raise ModelNotLoadable(
            f"{folder} is an encoder-decoder model, which --precision int8 does not take: use fp32 "
            "or bf16"
        )


def architecture_of(folder: Path) -> str:
    """What the model in a folder is served as. Raises `ModelNotLoadable`."""
    names: list[str] = _config_of(folder).get("architectures") or ["None"]
    for name in names:
        if (whole := WITHOUT_HEAD.get(name, name)) in ARCHITECTURES:
            return whole
    reason = f" ({NOT_SERVED[names[0]]})" if names[0] in NOT_SERVED else ""
    *others, last = ARCHITECTURES
    raise ModelNotLoadable(
        f"{folder} is an encoder-decoder model of architecture {names[0]}{reason}; those that can "
        f"be served are {', '.join(others)} and {last}"
    )


def num_positions(folder: Path) -> int | None:
    """How many positions a model has learned for each of its stacks; None where it has none."""
    if ARCHITECTURES[architecture_of(folder)] != "bart":
        return None
    return int(_config_of(folder).get("max_position_embeddings", DEFAULT_POSITIONS))


def default_encoder_window(folder: Path) -> int:
    """The encoder's window where none is asked for, in tokens."""
    return num_positions(folder) or DEFAULT_ENCODER_WINDOW


def encoder_decoder_arguments(
    folder: Path, encoder_window: int | None, context_window: int | None
) -> dict[str, Any]:
    """What vLLM's engine arguments have to be for such a model; windows are in tokens."""
    positions = num_positions(folder)
    encoder_window = encoder_window or default_encoder_window(folder)
    overrides = {"architectures": [architecture_of(folder)], "encoder_window": encoder_window}
    if positions is None and context_window:
        # A longer window than the model was trained with is the operator's to choose, which vLLM
        # knows by this name.
        overrides["model_max_length"] = context_window
    longest = max(encoder_window, context_window or positions or 0)
    arguments = {
        "hf_overrides": overrides,
        # Else a LoRA's rows are counted as the decoder's in both stacks, and the engine dies.
        "enable_tower_connector_lora": True,
        # A prompt, and a decoder's tokens after a preemption, go through in one step.
        "max_num_batched_tokens": max(MIN_BATCHED_TOKENS, longest),
        "skip_mm_profiling": True,
        "mm_processor_cache_gb": 0,
    }
    if decoder_tokens(folder).forces_any:
        arguments["logits_processors"] = [FORCED_TOKENS]
    return arguments


def encoder_decoder_input(
    encoder_ids: list[int],
    decoder_ids: list[int],
    soft_prompt: str = "",
    rows: "torch.Tensor | None" = None,
) -> "EncoderDecoderInput":
    """An engine input: tokens for either stack, and a soft prompt's rows, (any, hidden size).

    `soft_prompt` tells its rows from those of others: equal inputs share an encoder's output.
    """
    import torch
    from vllm.inputs.engine import EncoderDecoderInput, mm_input, tokens_input
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalKwargsItem,
        MultiModalKwargsItems,
        PlaceholderRange,
    )

    token_ids = torch.tensor(encoder_ids)
    rows = torch.empty(0) if rows is None else rows
    item = MultiModalKwargsItem(
        {
            name: MultiModalFieldElem(data=data, field=MultiModalBatchedField())
            for name, data in {"token_ids": token_ids, "rows": rows}.items()
        }
    )
    digest = hashlib.sha256(token_ids.numpy().tobytes()).hexdigest()
    length = len(rows) + len(encoder_ids)
    return EncoderDecoderInput(
        type="enc_dec",
        encoder_prompt=tokens_input(encoder_ids),
        decoder_prompt=mm_input(
            decoder_ids,
            MultiModalKwargsItems({MODALITY: [item]}),
            {MODALITY: [f"{soft_prompt}:{digest}"]},
            {MODALITY: [PlaceholderRange(offset=0, length=length)]},
        ),
    )


def _config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return config
