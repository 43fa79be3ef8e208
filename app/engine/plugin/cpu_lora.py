"""LoRA on a CPU, in place of vLLM's `PunicaWrapperCPU`, for two reasons.

In vLLM 0.32 a request without an adapter that shares a batch with one gets the last slot's adapter:
its slot is -1, which `bgmv_shrink` takes as an index from the end
(tests/unit/engine/test_cpu_lora.py fails once that is cured). And it gathers a copy of an adapter's
weights for every token, for all modules, touched or not.

Here a batch's rows are sorted by slot once, for all layers. Rows without an adapter cost nothing,
and a layer that no adapter of the batch touches costs a look-up. What multiplies is the compiled
operator, where there is one for this machine.
"""

from functools import partial
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.lora.layers import (
    BaseLayerWithLoRA,
    LogitsProcessorWithLoRA,
    LoRAMapping,
    VocabParallelEmbeddingWithLoRA,
)
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.platforms.cpu import CpuPlatform

from app.engine.plugin.lora_products import (
    NO_ROWS,
    NativeProducts,
    Products,
    Ranks,
    SortedRows,
    Stacks,
    TorchProducts,
)
from app.engine.plugin.native import library

logger = init_logger(f"vllm.{__name__}")

_register_module = LoRAModelManager.register_module


def register() -> None:
    """Have vLLM's CPU platform name this class, and its manager arrange its layers for it."""
    name = f"{SortedPunicaWrapper.__module__}.{SortedPunicaWrapper.__name__}"
    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: name)
    LoRAModelManager.register_module = _register_arranged


class LoRAKernel:
    """A part of `app.engine.plugin.worker`."""

    model_runner: Any

    def softserve_lora_kernel(self) -> str | None:
        """What multiplies with LoRAs here; None where softserve leaves it to vLLM."""
        manager = self.model_runner.lora_manager._adapter_manager  # noqa: SLF001
        for wrapper in manager.punica_wrapper_mapping.values():
            if isinstance(wrapper, SortedPunicaWrapper):
                return wrapper.products.name
        return None


class SortedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """`PunicaWrapperBase` for a CPU. app/engine/plugin/lora_products.py has the shapes.

    `has_gains` is of app/engine/plugin/dora.py: whether an adapter of the batch has more than A, B.
    """

    has_gains = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.products = best_products()
        self._token_rows = self._sampler_rows = NO_ROWS
        self._adapter_in_slot: tuple[int | None, ...] = ()
        self._ranks: dict[int, Ranks] = {}

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        if (adapters := tuple(lora_index_to_id)) != self._adapter_in_slot:
            self._adapter_in_slot = adapters
        self._token_rows = SortedRows.by(self.token_lora_indices)
        is_decode = mapping.prompt_mapping == mapping.index_mapping
        self._sampler_rows = self._token_rows if is_decode else SortedRows.by(self.sampler_indices)

    def changes(self, lora_b: Stacks) -> bool:
        """Whether an adapter of the batch changes what comes out of a layer with this B."""
        return self.has_gains or self._are_changed(self._token_rows, lora_b)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacks,
        lora_b_stacked: Stacks,
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y[:, slice] += scale * x @ A.T @ B.T, slice by slice, with each token's own A and B."""
        self._add(y, x, lora_a_stacked, lora_b_stacked, scale, self._token_rows)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """As `add_lora_linear`, for the rows that are sampled from."""
        self._add(y, x, (lora_a_stacked,), (lora_b_stacked,), scale, self._sampler_rows)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **kwargs: Any
    ) -> None:
        """y += x @ B.T, where x already is the embedding's A."""
        self._add(y, x, (), (lora_b_stacked,), 1.0, self._token_rows)

    def _add(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a: Stacks,
        lora_b: Stacks,
        scale: float,
        rows: SortedRows,
    ) -> None:
        if not self._are_changed(rows, lora_b):
            return
        ranks = self._ranks_of(lora_b)
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        self.products.add(y, x.to(lora_b[0].dtype), lora_a, lora_b, scale, rows, ranks)

    def _are_changed(self, rows: SortedRows, lora_b: Stacks) -> bool:
        return bool(rows.slots) and not rows.slots.isdisjoint(self._ranks_of(lora_b).slots)

    def _ranks_of(self, lora_b: Stacks) -> Ranks:
        """The ranks in a module, which are looked at when another adapter comes into a slot."""
        key = lora_b[0].data_ptr()
        ranks = self._ranks.get(key)
        if ranks is None:
            ranks = self._ranks[key] = Ranks(len(lora_b), len(lora_b[0]))
        if ranks.adapters is not self._adapter_in_slot:
            ranks.update(self._adapter_in_slot, tuple(stacked.mT for stacked in lora_b))
        return ranks


def best_products() -> Products:
    """The compiled ones, where they are there for this machine."""
    try:
        library.load()
    except library.NotCompiledError as error:
        logger.warning(
            "LoRAs run on PyTorch's products, which are slower: %s. With g++ installed, "
            "scripts/install.sh compiles them.",
            error,
        )
        return TorchProducts()
    return NativeProducts()


def _register_arranged(manager: LoRAModelManager, name: str, module: BaseLayerWithLoRA) -> None:
    _register_module(manager, name, module)
    if not current_platform.is_cpu():
        return
    match module:
        case BaseLinearLayerWithLoRA():
            module.lora_b_stacked = tuple(map(by_rank, module.lora_b_stacked))
            module.forward = partial(_forward, module, module.forward, module.base_layer)
        case LogitsProcessorWithLoRA() | VocabParallelEmbeddingWithLoRA():
            module.lora_b_stacked = by_rank(module.lora_b_stacked)


def _forward(module: BaseLinearLayerWithLoRA, with_loras: Any, base: Any, x: torch.Tensor) -> Any:
    # What vLLM's layer does around the products takes as long as the base layer of a small model.
    changed = module.punica_wrapper.changes(module.lora_b_stacked)
    return with_loras(x) if changed else base(x)


def by_rank(stacked: torch.Tensor) -> torch.Tensor:
    """A stacked B whose ranks lie one after the other in memory, and the outputs of each together.

    So a product reads the ranks that an adapter has, and nothing between them.
    """
    return stacked.mT.contiguous().mT
