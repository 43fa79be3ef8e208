"""Encoder-decoder models, which vLLM 0.32 has none of for text: T5 and BART, and their kin.

A model's encoder is what vLLM takes for the encoder of another modality: its input is an item of a
request (app/engine/vllm/encoder_decoder.py), and its output goes to the decoder's cross-attention.

    model                what the models have in common
    t5                   T5, FLAN-T5, MT5
    bart                 BART, MBART
    relative_attention   self-attention of T5's decoder, with a bias for each distance
    forced_tokens        the first and the last token of a completion, where a model forces them
    encoder_input        what vLLM has to know of the encoder's input
    encoder_order        which of a step's encoder outputs is which request's
"""

from typing import Any

import vllm
from vllm.model_executor.models.registry import ModelRegistry
from vllm.v1.attention.backends.registry import register_backend

from app.engine.vllm.encoder_decoder import ARCHITECTURES

# vLLM keeps what it learned of a class on disk, under its name and the digest of its file.
_SUFFIX = "_" + vllm.__version__.replace(".", "_")


def register() -> None:
    """Have vLLM know the models, and what they need."""
    from app.engine.plugin.seq2seq import encoder_order, relative_attention

    register_backend(relative_attention.NAME, f"{relative_attention.__name__}.RelativeBackend")
    for architecture, module in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, f"{__name__}.{module}:{architecture}{_SUFFIX}")
    encoder_order.register()


def by_name_with_version(module: dict[str, Any], name: str) -> Any:
    """What a module of this package has under a name that `register` gave it."""
    plain = name.removesuffix(_SUFFIX)
    if plain == name or plain not in module:
        raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
    return module[plain]
