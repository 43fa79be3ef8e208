"""Requests to vLLM for encoder-decoder models: a prompt for the encoder, and one for the decoder.

The encoder's input is an item of a modality of its own, with its tokens and the rows of a soft
prompt in front of them. What the decoder has to start with is the request's prompt in vLLM.
The model's side is in app/engine/plugin/seq2seq.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import ModelNotLoadable

if TYPE_CHECKING:
    import torch
    from vllm.inputs.engine import EncoderDecoderInput

MODALITY = "encoder_text"
ENCODER_WINDOW_VARIABLE = "SOFTSERVE_PLUGIN_ENCODER_WINDOW"
# What FLAN-T5 was trained with.
DEFAULT_ENCODER_WINDOW = 512
# vLLM's own on a CPU: what is encoded in a step, and decoded for new requests.
MIN_BATCHED_TOKENS = 2048
# Those of app/engine/plugin/seq2seq.
ARCHITECTURES = ("T5ForConditionalGeneration", "MT5ForConditionalGeneration")


def is_encoder_decoder(folder: Path) -> bool:
    """Whether the model in a folder is one."""
    config = json.loads((folder / "config.json").read_bytes())
    return bool(config.get("is_encoder_decoder", False))


def check_served(folder: Path) -> None:
    """Refuse an encoder-decoder model that cannot be served, with the reason.

    Raises:
        ModelNotLoadable: its architecture is not known, or what its decoder starts with.
    """
    config = json.loads((folder / "config.json").read_bytes())
    unknown = [name for name in config["architectures"] if name not in ARCHITECTURES]
    if unknown:
        raise ModelNotLoadable(
            f"{folder} is an encoder-decoder model of architecture {unknown[0]}; those that can be "
            f"served are {' and '.join(ARCHITECTURES)}"
        )
    if config.get("decoder_start_token_id") is None:
        raise ModelNotLoadable(
            f"{folder / 'config.json'} has no decoder_start_token_id: add the id that the model's "
            "decoder was trained to start with"
        )


def encoder_decoder_arguments(encoder_window: int, context_window: int | None) -> dict[str, Any]:
    """What vLLM's engine arguments have to be for such a model; windows are in tokens."""
    # Positions are relative: a longer window than the model was trained with is the operator's to
    # choose, which vLLM knows by this name.
    overrides = {"model_max_length": context_window} if context_window else {}
    return {
        "hf_overrides": overrides,
        # Else a LoRA's rows are counted as the decoder's in both stacks, and the engine dies.
        "enable_tower_connector_lora": True,
        # A prompt, and a decoder's tokens after a preemption, go through in one step.
        "max_num_batched_tokens": max(MIN_BATCHED_TOKENS, encoder_window, context_window or 0),
        "skip_mm_profiling": True,
        "mm_processor_cache_gb": 0,
    }


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
