"""What the model takes up in a worker's memory, measured there."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from vllm._custom_ops import CPUDNNLGEMMHandler
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.model_executor.layers.linear import LinearBase

from app.engine.plugin.int8 import TwoDigitProduct


class MemoryReport:
    """A part of `app.engine.plugin.worker`."""

    model_runner: Any

    def softserve_memory(self) -> dict[str, int]:
        """Bytes of the linear layers' weights, of all other weights, and of the KV cache."""
        linear, other = weight_bytes(self.model_runner.model)
        return {
            "linear_weight_bytes": linear,
            "other_weight_bytes": other,
            "kv_cache_bytes": _bytes_of(_tensors_in(self.model_runner.kv_caches)),
        }


def weight_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of the weights of linear layers, and of all others. LoRAs are in neither."""
    by_kind: dict[bool, list[torch.nn.Module]] = {True: [], False: []}
    for module in model.modules():
        if not isinstance(module, BaseLayerWithLoRA):
            by_kind[isinstance(module, LinearBase)].append(module)
    return _module_bytes(by_kind[True]), _module_bytes(by_kind[False])


def _module_bytes(modules: list[torch.nn.Module]) -> int:
    tensors = chain.from_iterable(
        chain(module.parameters(recurse=False), module.buffers(recurse=False)) for module in modules
    )
    return _bytes_of(tensors) + sum(_packed_bytes(module) for module in modules)


def _bytes_of(tensors: Iterator[torch.Tensor]) -> int:
    """Bytes of the memory that the tensors lie in; of what two of them share, once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors_in(caches: Any) -> Iterator[torch.Tensor]:
    if isinstance(caches, torch.Tensor):
        yield caches
    else:
        for cache in caches:
            yield from _tensors_in(cache)


def _packed_bytes(module: torch.nn.Module) -> int:
    """Bytes of the packed copy of a module's weights that a kernel keeps out of its parameters."""
    packed: int = 0
    # vLLM's kernels for floats, and ours for a head, are functions with their weights in a closure.
    for cell in getattr(getattr(module, "cpu_linear", None), "__closure__", None) or ():
        match cell.cell_contents:
            case CPUDNNLGEMMHandler() as handler:
                packed += handler.n * handler.k * module.weight.dtype.itemsize
            case torch.Tensor() as tensor:
                packed += tensor.untyped_storage().nbytes()
            case TwoDigitProduct() as int8_product:
                packed += _product_bytes(int8_product)
    checkpoint_kernel = getattr(getattr(module, "scheme", None), "kernel", None)
    if handler := getattr(checkpoint_kernel, "dnnl_handler", None):
        packed += handler.n * handler.k
    if isinstance(product := getattr(module, "int8_product", None), TwoDigitProduct):
        packed += _product_bytes(product)
    return packed


def _product_bytes(product: TwoDigitProduct) -> int:
    return int(product.packed.n * product.packed.k + product.scale.nbytes)
