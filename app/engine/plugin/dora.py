"""DoRA: LoRAs with a magnitude of their own for every output channel (arXiv 2402.09353).

A channel of W + BA is scaled to the length m that training gave it, so that with a bias b

    y = g * (W x + B A x) + b,  where g = m / |W + BA|, of each row.

vLLM adds B A x to W x + b and knows no g. Here (g - 1) * (y - b) is added to that: nothing, for the
tokens of other adapters and of none, to the last bit. The rows' lengths are those of the weights
that the layer multiplies with, whatever it keeps them in: it is given the rows of an identity.

PEFT saves m as `lora_magnitude_vector` beside lora_A and lora_B, and leaves biases outside (its
tuners/lora/dora.py). vLLM would refuse the tensor, and is told to pass it over.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.lora import lora_model
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.model_executor.layers.linear import RowParallelLinear

from app.engine.plugin.adapted import engine_name, renames_of

MAGNITUDE = ".lora_magnitude_vector"
# So many columns of the weights at a time: a block of W lies in memory once more.
NUM_COLUMNS = 256

_is_base_embedding_weights = lora_model.is_base_embedding_weights
_init_punica_wrapper = LoRAModelManager._init_punica_wrapper  # noqa: SLF001
_create_lora_modules = LoRAModelManager._create_lora_modules  # noqa: SLF001
_set_adapter_mapping = LoRAModelManager._set_adapter_mapping  # noqa: SLF001
_activate_adapter = LoRAModelManager.activate_adapter
_load_adapter = WorkerLoRAManager._load_adapter  # noqa: SLF001
_apply = BaseLinearLayerWithLoRA.apply
_apply_base_forward = BaseLinearLayerWithLoRA._apply_base_forward  # noqa: SLF001


def register() -> None:
    """Put the functions of this module around vLLM's own."""
    lora_model.is_base_embedding_weights = _is_passed_over
    LoRAModelManager._init_punica_wrapper = _init_gains_in_batch  # noqa: SLF001
    LoRAModelManager._create_lora_modules = _create_gains  # noqa: SLF001
    LoRAModelManager._set_adapter_mapping = _set_gains_in_batch  # noqa: SLF001
    LoRAModelManager.activate_adapter = _activate_gains
    WorkerLoRAManager._load_adapter = _load_magnitudes  # noqa: SLF001
    BaseLinearLayerWithLoRA.apply = _apply_gains
    BaseLinearLayerWithLoRA._apply_base_forward = _apply_gains_to_base_forward  # noqa: SLF001


# Loading: an adapter has `magnitudes` by the engine's names of the modules.


def _is_passed_over(name: str) -> bool:
    return name.endswith(MAGNITUDE) or _is_base_embedding_weights(name)


def _load_magnitudes(worker: WorkerLoRAManager, request: LoRARequest) -> Any:
    lora = _load_adapter(worker, request)
    renames = renames_of(worker._adapter_manager.model)  # noqa: SLF001
    with safe_open(Path(request.lora_path) / "adapter_model.safetensors", framework="pt") as file:
        lora.magnitudes = {
            engine_name(name.removesuffix(MAGNITUDE), renames): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.endswith(MAGNITUDE)
        }
    return lora


# In the slots: a module has `gains`, of shape (slots + 1, out), in which a row is g - 1 of a slot's
# adapter. The last row stays zero: it is that of slot -1, of tokens without an adapter.


def _create_gains(manager: LoRAModelManager) -> None:
    _create_lora_modules(manager)
    manager.slots_with_gains = set()
    for module in manager.modules.values():
        if isinstance(module, BaseLinearLayerWithLoRA):
            stacked = module.lora_b_stacked[0]
            shape = (manager.lora_slots + 1, sum(module.output_slices))
            module.gains = torch.zeros(shape, dtype=stacked.dtype, device=stacked.device)


def _activate_gains(manager: LoRAModelManager, lora_id: int) -> bool:
    activated: bool = _activate_adapter(manager, lora_id)
    if activated:
        lora = manager._registered_adapters[lora_id]  # noqa: SLF001
        slot = manager.lora_index_to_id.index(lora_id)
        # Not so of the adapters that vLLM warms up with.
        if getattr(lora, "magnitudes", None):
            if not hasattr(lora, "gains"):
                lora.gains = dict(_gains_of(manager, lora.magnitudes, slot))
            _set_gains(manager, slot, lora.gains)
            manager.slots_with_gains.add(slot)
        elif slot in manager.slots_with_gains:
            _set_gains(manager, slot, {})
            manager.slots_with_gains.remove(slot)
    return activated


def _set_gains(manager: LoRAModelManager, slot: int, gains: dict[str, torch.Tensor]) -> None:
    for name, module in manager.modules.items():
        if hasattr(module, "gains"):
            module.gains[slot] = gains.get(name, 0)


def _gains_of(
    manager: LoRAModelManager, magnitudes: dict[str, torch.Tensor], slot: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """What the adapter in a slot has of each module.

    Raises:
        ValueError: it cannot be run exactly.
    """
    if manager.lora_config.fully_sharded_loras:
        raise ValueError("DoRA does not run with fully_sharded_loras")
    known = set()
    for name, module in manager.modules.items():
        parts = manager.packed_modules.get(name, [name])
        if magnitudes.keys().isdisjoint(parts):
            continue
        if not hasattr(module, "gains"):
            raise ValueError(f"DoRA does not run on {name}, a {type(module).__name__}")
        known.update(parts)
        # In the engine's own order, as B is, of which a magnitude is a column.
        columns = [m if m is None else m[:, None].float() for m in map(magnitudes.get, parts)]
        lengths = _row_lengths(module, slot)
        gains = torch.zeros_like(lengths)
        for (start, end), column in zip(_slices(module), _sliced(module, columns), strict=True):
            if column is not None:
                m = column[:, 0].to(lengths.device)
                gains[start:end] = m / lengths[start:end] - 1
        if not gains.isfinite().all():
            raise ValueError(f"a magnitude of {name} is infinite beside its weights")
        yield name, gains
    if unknown := magnitudes.keys() - known:
        raise ValueError(f"DoRA does not run on {min(unknown)}")


def _sliced(
    module: BaseLinearLayerWithLoRA, columns: list[torch.Tensor | None]
) -> Sequence[torch.Tensor | None]:
    """The columns of each slice of a module's output, of this worker's part of it."""
    if module.n_slices == 1:
        (column,) = columns
        return [module.slice_lora_b(column) if module.tp_size > 1 else column]
    if len(columns) != module.n_slices:
        _, columns = module.expand_packed_lora(columns, columns)
    sliced: list[torch.Tensor | None] = (
        module.slice_lora_b(columns) if module.tp_size > 1 else columns
    )
    return sliced


def _slices(module: BaseLinearLayerWithLoRA) -> Iterator[tuple[int, int]]:
    start = 0
    for size in module.output_slices:
        yield start, start + size
        start += size


def _row_lengths(module: BaseLinearLayerWithLoRA, slot: int) -> torch.Tensor:
    """|W + BA| of each row, of the weights as the layer has them and the adapter in a slot."""
    layer = module.base_layer
    stacked = module.lora_a_stacked[0]
    # Not the LoRA's type: a layer may be in a wider one than the model.
    width = stacked.shape[-1]
    options = {"dtype": layer.params_dtype, "device": stacked.device}
    squares = torch.zeros(sum(module.output_slices), dtype=torch.float32, device=stacked.device)
    for first in range(0, width, NUM_COLUMNS):
        last = min(first + NUM_COLUMNS, width)
        identity = torch.zeros((last - first, width), **options)
        identity[:, first:last].fill_diagonal_(1)
        columns = layer.quant_method.apply(layer, identity, None).float()
        for (start, end), a, b in zip(
            _slices(module), module.lora_a_stacked, module.lora_b_stacked, strict=True
        ):
            a_columns = a[slot, 0, :, first:last].float()
            columns[:, start:end] += (b[slot, 0].float() @ a_columns).T
        squares += columns.square().sum(dim=0)
    if isinstance(layer, RowParallelLinear) and module.tp_size > 1:
        # Each worker has some of a row's columns.
        squares = tensor_model_parallel_all_reduce(squares)
    return squares.sqrt()


# In a batch: nothing is done where no adapter of it has gains. What is compiled, or captured in a
# CUDA graph, is the same for all batches.


def _init_gains_in_batch(
    manager: LoRAModelManager, max_num_batched_tokens: int, vllm_config: VllmConfig
) -> None:
    _init_punica_wrapper(manager, max_num_batched_tokens, vllm_config)
    for wrapper in manager.punica_wrapper_mapping.values():
        # A step looks at as many as a graph is wide; those behind the batch are of earlier steps.
        wrapper._token_lora_indices.fill_(-1)  # noqa: SLF001
        wrapper.is_fixed = not vllm_config.model_config.enforce_eager
        wrapper.has_gains = wrapper.is_fixed


def _set_gains_in_batch(manager: LoRAModelManager, mapping: LoRAMapping) -> None:
    _set_adapter_mapping(manager, mapping)
    ids = {manager.lora_index_to_id[slot] for slot in manager.slots_with_gains}
    # A prefill has an id for each of thousands of tokens: they are looked at for a DoRA alone.
    has_gains = bool(ids) and not ids.isdisjoint(mapping.index_mapping)
    for wrapper in manager.punica_wrapper_mapping.values():
        wrapper.has_gains = wrapper.is_fixed or has_gains


def _apply_gains(
    module: BaseLinearLayerWithLoRA, x: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return _add_gains(module, _apply(module, x, bias), bias)


def _apply_gains_to_base_forward(module: BaseLinearLayerWithLoRA, x: torch.Tensor) -> torch.Tensor:
    layer = module.base_layer
    bias = None if layer.skip_bias_add else layer.bias
    return _add_gains(module, _apply_base_forward(module, x), bias)


def _add_gains(
    module: BaseLinearLayerWithLoRA, y: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    wrapper = module.punica_wrapper
    if not wrapper.has_gains:
        return y
    rows = y.view(-1, y.shape[-1])
    gains = module.gains[wrapper._token_lora_indices[: rows.shape[0]]]  # noqa: SLF001
    rows.addcmul_(gains, rows if bias is None else rows - bias)
    return y
