"""Text models that vLLM runs no LoRA on, or none on their embeddings, though its LoRA layers fit.

`with_loras` makes the class that says so. What vLLM wants to know of it is read from the model once
it is made: which of its layers are several of PEFT's modules in one, and which are embeddings. The
names of all others are those of transformers, or the stock class has a mapper for them.
"""

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.interfaces import SupportsLoRA

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# tests/server/architectures.py compares each of them with PEFT. What it cannot run is not here, as
# vLLM's mixtures of experts and state-space models on a CPU.
ADDED = frozenset(
    {
        "BloomForCausalLM",
        "FalconForCausalLM",
        "GPT2LMHeadModel",
        "GPTJForCausalLM",
        "GemmaForCausalLM",
        "HrmTextForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "StableLmForCausalLM",
    }
)
# What vLLM's LoRA layer of a head takes (its lora/layers/logits_processor.py).
MAX_HEAD_TOKENS = 258_048

# By class: the parts of merged layers that are merged in its checkpoints too, and not in PEFT.
_PARTS = {
    "HrmTextForCausalLM": {
        "gqkv_proj": ["gate_proj", "q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
}


def with_loras(stock: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """A class made from a stock one, which says that it takes LoRAs."""

    class WithLoRAs(stock, SupportsLoRA):  # type: ignore[misc]
        def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            told = getattr(stock, "packed_modules_mapping", None) or _PARTS.get(stock.__name__, {})
            self.packed_modules_mapping = _whole_layers(self) | _stacked_parts(self) | told
            self.embedding_modules = _embeddings(self)

    WithLoRAs.__name__ = WithLoRAs.__qualname__ = stock.__name__
    return WithLoRAs


def _whole_layers(model: torch.nn.Module) -> dict[str, list[str]]:
    """Merged layers as if each were one module of PEFT's, as the fused ones are."""
    names = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, QKVParallelLinear | MergedColumnParallelLinear)
    )
    return {name: [name] for name in names}


def _stacked_parts(model: Any) -> dict[str, list[str]]:
    """The parts of merged layers, in their order, as the stock class loads them."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    parts: dict[str, list[str]] = {}
    for part, (whole, _) in mapper.orig_to_new_stacked.items() if mapper else ():
        parts.setdefault(whole.strip("."), []).append(part.strip("."))
    return parts


def _embeddings(model: torch.nn.Module) -> dict[str, str]:
    """The input and output embeddings, by their names."""
    return {
        name.rpartition(".")[2]: "output_embeddings"
        if isinstance(module, ParallelLMHead)
        else "input_embeddings"
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding) and not _is_too_large(module)
    }


def _is_too_large(module: VocabParallelEmbedding) -> bool:
    """Whether vLLM's LoRA layer of it would end the server."""
    return isinstance(module, ParallelLMHead) and module.org_vocab_size > MAX_HEAD_TOKENS
