"""What a CPU holds of embeddings, which are read row by row, and of heads, which multiply.

vLLM 0.32 packs a copy of both for products, and keeps the plain weights of both too: a head with
weights of its own is held twice, and one that is tied to the embedding three times. Here

- a head is packed, and its plain weights go;
- an embedding is not packed. For FP32 activations it is held as BF16 where that rounds nothing,
  as with the checkpoints in BF16, which most are: what is read is the same;
- an embedding that a model multiplies with, for want of a head, is packed as one.

Tied weights are so held twice, plain and packed: docs/precision.md has what one copy would cost.
"""

from typing import Any

import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.platforms import current_platform

_load_model = BaseModelLoader.load_model


def register() -> None:
    """Have vLLM hold on a CPU what is used, and no more."""
    if current_platform.is_cpu():
        UnquantizedEmbeddingMethod.softserve_pack = _pack
        UnquantizedEmbeddingMethod.process_weights_after_loading = _process_weights_after_loading
        UnquantizedEmbeddingMethod.embedding = _embedding
        UnquantizedEmbeddingMethod.apply = _apply
        BaseModelLoader.load_model = _load_with_a_head


def _pack(method: UnquantizedEmbeddingMethod, layer: torch.nn.Module) -> None:
    """Make the layer's product, `cpu_linear`. A method for other weights has its own."""
    dispatch_cpu_unquantized_gemm(layer, remove_weight=isinstance(layer, ParallelLMHead))


def _process_weights_after_loading(
    method: UnquantizedEmbeddingMethod, layer: torch.nn.Module
) -> None:
    if isinstance(layer, ParallelLMHead):
        method.softserve_pack(layer)
    elif layer.weight.dtype == torch.float32:
        rounded = layer.weight.to(torch.bfloat16)
        if torch.equal(rounded.float(), layer.weight):
            layer.weight = _parameter(rounded)


def _embedding(
    method: UnquantizedEmbeddingMethod, layer: torch.nn.Module, token_ids: torch.Tensor
) -> torch.Tensor:
    return torch.nn.functional.embedding(token_ids, layer.weight).to(layer.params_dtype)


def _apply(
    method: UnquantizedEmbeddingMethod,
    layer: torch.nn.Module,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    product: torch.Tensor = layer.cpu_linear(x, layer.weight, bias)
    return product


def _load_with_a_head(loader: BaseModelLoader, *args: Any, **options: Any) -> torch.nn.Module:
    """Packed now: a first product that packs ends the worker of some models."""
    model: torch.nn.Module = _load_model(loader, *args, **options)
    layers = list(model.modules())
    if not any(isinstance(layer, ParallelLMHead) for layer in layers):
        for layer in layers:
            method = getattr(layer, "quant_method", None)
            if isinstance(method, UnquantizedEmbeddingMethod):
                layer.weight = _parameter(layer.weight.to(layer.params_dtype))
                method.softserve_pack(layer)
    return model


def _parameter(weight: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight, requires_grad=False)
