"""Text models that take adapters: vLLM's own classes, with what they lack.

For a text architecture this registers, under the architecture's own name, a class that is made on
demand from the stock one. Those that vLLM runs no LoRA on, though it could, get what
app/engine/plugin/lora_models.py adds. And all of them are counted as multimodal, for soft prompts:
vLLM has a modality "prompt_embeds" whose rows its runners put straight into the cache where a
multimodal model's encoder outputs lie; merging them into the token embeddings is all that is left
to do. How a request carries its rows is in app/engine/vllm/soft_prompts.py.

The server process says by an environment variable how many rows a prompt may have, and so whether
there are soft prompts at all: the plugin is loaded before vLLM has any configuration.
"""

import inspect
import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module

import torch
import vllm
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsMultiModal,
    supports_multimodal,
)
from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS, ModelRegistry
from vllm.model_executor.models.utils import _merge_multimodal_embeddings
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseProcessingInfo

from app.engine.plugin import lora_models
from app.engine.plugin.ready_inputs import NoDummyInputs, NoProcessor
from app.engine.vllm.soft_prompts import MAX_VIRTUAL_TOKENS_VARIABLE, MODALITY

# vLLM keeps what it learned of a class on disk, under the class's name and the digest of this file.
_SUFFIX = "_" + vllm.__version__.replace(".", "_") + "_"
_WITH_SOFT_PROMPTS = "SoftPrompts" + _SUFFIX
_WITH_LORAS = "LoRAs" + _SUFFIX
_NO_SOFT_PROMPTS = frozenset(
    {
        # Their layers look at the token ids as well, which a row of a soft prompt does not have:
        # embeddings of each layer, of n-grams, or experts that are chosen by the token.
        "DeepseekV4ForCausalLM",
        "Gemma3nForCausalLM",
        "Gemma4ForCausalLM",
        "LongcatFlashNgramForCausalLM",
        # A prompt's tokens see those behind them; PEFT trains soft prompts where they do not.
        "HrmTextForCausalLM",
    }
)


def register() -> None:
    """Put the classes of this module instead of the stock ones, to be made on demand."""
    prefix = _WITH_SOFT_PROMPTS if max_virtual_tokens() else _WITH_LORAS
    for architecture in _TEXT_GENERATION_MODELS if max_virtual_tokens() else lora_models.ADDED:
        ModelRegistry.register_model(architecture, f"{__name__}:{prefix}{architecture}")


def max_virtual_tokens() -> int:
    """The most rows of one soft prompt; 0 where there are none."""
    return int(os.environ.get(MAX_VIRTUAL_TOKENS_VARIABLE, "0"))


def __getattr__(name: str) -> type[torch.nn.Module]:
    """The class of an architecture, by the name that `register` gave it."""
    for prefix in (_WITH_SOFT_PROMPTS, _WITH_LORAS):
        if name.startswith(prefix):
            architecture = name.removeprefix(prefix)
            return _make_class(architecture, soft_prompts=prefix == _WITH_SOFT_PROMPTS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _make_class(architecture: str, *, soft_prompts: bool) -> type[torch.nn.Module]:
    module, class_name = _TEXT_GENERATION_MODELS[architecture]
    if not module.startswith("vllm."):
        module = f"vllm.model_executor.models.{module}"
    made: type[torch.nn.Module] = getattr(import_module(module), class_name)
    if architecture in lora_models.ADDED:
        made = lora_models.with_loras(made)
    takes_rows = architecture not in _NO_SOFT_PROMPTS and _takes_embeddings(made)
    return _with_soft_prompts(made) if soft_prompts and takes_rows else made


def _takes_embeddings(stock: type[torch.nn.Module]) -> bool:
    """Whether a stock class embeds outside of its forward pass, and is not multimodal by itself."""
    return (
        hasattr(stock, "embed_input_ids")
        and "inputs_embeds" in inspect.signature(stock.forward).parameters
        and not supports_multimodal(stock)
    )


def _with_soft_prompts(stock: type[torch.nn.Module]) -> type[torch.nn.Module]:
    class WithSoftPrompts(stock, SupportsMultiModal):  # type: ignore[misc]
        def get_language_model(self) -> torch.nn.Module:
            return self

        @classmethod
        def get_placeholder_str(cls, modality: str, i: int) -> str | None:
            return None

        def embed_input_ids(
            self,
            input_ids: torch.Tensor,
            multimodal_embeddings: MultiModalEmbeddings | None = None,
            *,
            is_multimodal: torch.Tensor | None = None,
        ) -> torch.Tensor:
            """The embeddings of the tokens, with the soft prompts' rows at their positions."""
            embeddings: torch.Tensor = super().embed_input_ids(input_ids)
            if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
                return embeddings
            assert is_multimodal is not None
            merged: torch.Tensor = _merge_multimodal_embeddings(
                embeddings, multimodal_embeddings, is_multimodal
            )
            return merged

    WithSoftPrompts.__name__ = WithSoftPrompts.__qualname__ = stock.__name__
    register_processor = MULTIMODAL_REGISTRY.register_processor(
        NoProcessor, info=_Limits, dummy_inputs=NoDummyInputs
    )
    registered: type[torch.nn.Module] = register_processor(WithSoftPrompts)
    return registered


class _Limits(BaseProcessingInfo):  # type: ignore[misc]
    """One soft prompt in a prompt, of so many rows: it sizes the cache that holds them."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Of no modality, a model is a text model like any other."""
        config = self.ctx.model_config
        width = config.get_inputs_embeds_size()
        # Only OPT, of vLLM's text models, can have another: its runner's buffer is `width` wide.
        is_narrow = getattr(config.hf_config, "word_embed_proj_dim", width) != width
        return {} if is_narrow else {MODALITY: 1}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {MODALITY: min(seq_len, max_virtual_tokens())}
