"""LoRA on a CPU: one pair of batched products for all adapters that have equally many tokens.

It stands in for vLLM's `PunicaWrapperCPU`, for two reasons. In vLLM 0.32 a request without an
adapter that shares a batch with one gets the last slot's adapter: its slot is -1, which
`bgmv_shrink` takes as an index from the end (tests/unit/engine/test_cpu_lora.py fails once that is
cured). And it gathers a copy of an adapter's weights for every token, for all modules, touched or
not.

Here a step's tokens are grouped by slot once, and the slots by how many tokens they have: those
with equally many share their products, which are then as few as one for a whole batch. Tokens
without an adapter cost nothing, and neither does a module that the adapters leave alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform


@dataclass(frozen=True, slots=True)
class Group:
    """Slots that have equally many tokens.

    `rows` are the positions of these tokens, slot by slot; None where they are all there are and
    lie in that order.
    """

    slots: tuple[int, ...]
    rows: torch.Tensor | None

    def of(self, stacked: torch.Tensor) -> torch.Tensor:
        """What the slots hold of (slots, 1, ...); a copy only where they do not lie together."""
        first, last = self.slots[0], self.slots[-1]
        if last - first + 1 == len(self.slots):
            return stacked[first : last + 1, 0]
        return stacked[list(self.slots), 0]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens' rows of (n, width), as (slots, tokens of each, width)."""
        rows = x if self.rows is None else x.index_select(0, self.rows)
        return rows.reshape(len(self.slots), -1, x.shape[-1])

    def add(self, y: torch.Tensor, delta: torch.Tensor) -> None:
        """Add what `take` gives, once multiplied, to the tokens' rows of y."""
        delta = delta.flatten(0, 1)
        if self.rows is None:
            y += delta
        else:
            y.index_add_(0, self.rows, delta.to(y.dtype))


def register() -> None:
    """Have vLLM's CPU platform name this class."""
    name = f"{GroupedPunicaWrapper.__module__}.{GroupedPunicaWrapper.__name__}"
    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: name)


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """`PunicaWrapperBase` for PyTorch on a CPU.

    Shapes, for n tokens: x (n, in), y (n, out); stacked A (slots, 1, max rank, in) and B (slots, 1,
    out, max rank), whose unused ranks are zero.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._token_groups: list[Group] = []
        self._sampler_groups: list[Group] = []
        self._adapter_in_slot: list[int | None] = []
        # By stacked A and slot: the adapter that was there, and its rank in this module.
        self._ranks: dict[tuple[int, int], tuple[int | None, int]] = {}

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._adapter_in_slot = list(lora_index_to_id)
        self._token_groups = _group(self.token_lora_indices)
        self._sampler_groups = _group(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y[:, slice] += scale * x @ A.T @ B.T, slice by slice, with each token's own A and B."""
        x = x.view(-1, x.shape[-1])
        y = y.view(-1, y.shape[-1])
        for group in self._token_groups:
            offset = 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                self._add_product(y[:, offset : offset + size], x, a, b, scale, group)
                offset += size

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
        x = x.view(-1, x.shape[-1])
        y = y.view(-1, y.shape[-1])
        for group in self._sampler_groups:
            self._add_product(y, x, lora_a_stacked, lora_b_stacked, scale, group)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **kwargs: Any
    ) -> None:
        """y += x @ B.T, where x already is the embedding's A."""
        for group in self._token_groups:
            group.add(y, group.take(x) @ group.of(lora_b_stacked).mT.to(x.dtype))

    def _add_product(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scale: float,
        group: Group,
    ) -> None:
        rank = max(self._rank(lora_a, slot) for slot in group.slots)
        if rank == 0:
            return
        shrunk = group.take(x) @ group.of(lora_a)[:, :rank].mT
        if scale != 1.0:
            shrunk *= scale
        group.add(y, shrunk @ group.of(lora_b)[..., :rank].mT)

    def _rank(self, lora_a: torch.Tensor, slot: int) -> int:
        """The rank of a slot's adapter in one module: the rows of A up to the last that is used."""
        key = lora_a.data_ptr(), slot
        adapter = self._adapter_in_slot[slot]
        known = self._ranks.get(key)
        if known is None or known[0] != adapter:
            used = lora_a[slot, 0].any(dim=1).nonzero()
            known = self._ranks[key] = (adapter, int(used[-1]) + 1 if len(used) else 0)
        return known[1]


def _group(slots: torch.Tensor) -> list[Group]:
    """The groups of a batch, from the slot of every row (-1: no adapter)."""
    found, counts = slots.unique(return_counts=True)
    rows_by_slot = slots.argsort(stable=True).split(counts.tolist())
    alike: dict[int, dict[int, torch.Tensor]] = {}
    for slot, rows in zip(found.tolist(), rows_by_slot, strict=True):
        if slot >= 0:
            alike.setdefault(len(rows), {})[slot] = rows
    return [
        Group(tuple(rows_of), None if len(found) == 1 else torch.cat(list(rows_of.values())))
        for rows_of in alike.values()
    ]
