"""The products of LoRAs on a CPU, for all adapters of a batch at once: compiled, and in PyTorch.

Both take a batch's rows sorted by slot, and skip slots whose adapter leaves a module alone.
Shapes, for n rows: x (n, in), y (n, out); stacked A (slots, 1, max rank, in) and B (slots, 1, out,
max rank), one of each for every slice of y. What of them is beyond a slot's rank is zero.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

Stacks = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class SortedRows:
    """The rows of a batch that have an adapter, sorted by slot.

    `rows` are their positions; `runs`, (slots of the batch, 3), have each slot with the first of
    its rows and the one behind its last, as places in `rows`. `are_all`: there are no others, and
    they lie in that order.
    """

    rows: torch.Tensor
    runs: torch.Tensor
    slots: frozenset[int]
    are_all: bool

    @classmethod
    def by(cls, slot_of_row: torch.Tensor) -> "SortedRows":
        """Sort them, by the slot of every row (-1: no adapter)."""
        rows = slot_of_row.argsort(stable=True)
        slots, counts = slot_of_row.unique(return_counts=True)
        ends = counts.cumsum(0)
        runs = torch.stack([slots, ends - counts, ends], dim=1)
        if len(slots) and slots[0] == -1:
            without = counts[0]
            rows, runs = rows[without:], runs[1:] - torch.stack([without * 0, without, without])
        are_all = len(slots) == len(runs) == 1
        return cls(rows, runs, frozenset(runs[:, 0].tolist()), are_all)

    @cached_property
    def groups(self) -> list["Group"]:
        """Slots that have equally many rows share their products."""
        alike: dict[int, dict[int, torch.Tensor]] = {}
        for slot, first, end in self.runs.tolist():
            alike.setdefault(end - first, {})[slot] = self.rows[first:end]
        return [
            Group(tuple(rows_of), None if self.are_all else torch.cat(list(rows_of.values())))
            for rows_of in alike.values()
        ]


NO_ROWS = SortedRows.by(torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True, slots=True)
class Group:
    """Slots that have equally many rows, and the positions of these, slot by slot; None for all."""

    slots: tuple[int, ...]
    rows: torch.Tensor | None

    def of(self, stacked: torch.Tensor) -> torch.Tensor:
        """What the slots hold of (slots, 1, ...); a copy only where they do not lie together."""
        first, last = self.slots[0], self.slots[-1]
        if last - first + 1 == len(self.slots):
            return stacked[first : last + 1, 0]
        return stacked[list(self.slots), 0]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The slots' rows of (n, width), as (slots, rows of each, width)."""
        rows = x if self.rows is None else x.index_select(0, self.rows)
        return rows.reshape(len(self.slots), -1, x.shape[-1])

    def add(self, y: torch.Tensor, delta: torch.Tensor) -> None:
        """Add what `take` gives, once multiplied, to the slots' rows of y."""
        delta = delta.flatten(0, 1)
        if self.rows is None:
            y += delta
        else:
            y.index_add_(0, self.rows, delta.to(y.dtype))


class Ranks:
    """The rank of each slot's adapter in each slice of a module: 0 where it leaves it alone."""

    def __init__(self, num_slices: int, num_slots: int) -> None:
        self.by_slice = torch.zeros((num_slices, num_slots), dtype=torch.int64)
        self.slots: frozenset[int] = frozenset()
        self.adapters: tuple[int | None, ...] = (None,) * num_slots

    def update(self, adapters: tuple[int | None, ...], stacks: Stacks) -> None:
        """Look at the slots that have another adapter now; `stacks` are (slots, 1, rank, any)."""
        pairs = enumerate(zip(self.adapters, adapters, strict=True))
        changed = [slot for slot, (old, new) in pairs if old != new]
        for ranks, stacked in zip(self.by_slice, stacks, strict=True):
            is_used = stacked[changed, 0].any(dim=2)
            ranks[changed] = (is_used * torch.arange(1, is_used.shape[1] + 1)).amax(dim=1)
        self.adapters = adapters
        self.slots = frozenset(self.by_slice.any(dim=0).nonzero().flatten().tolist())


class Products(Protocol):
    """Adds scale * x @ A.T @ B.T to the slices of y; without A, x is that product already."""

    name: str

    def add(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a: Stacks,
        lora_b: Stacks,
        scale: float,
        rows: SortedRows,
        ranks: Ranks,
    ) -> None: ...


class NativeProducts:
    """native/lora.cpp: sums in FP32, and always in the same order."""

    name = "native"

    def add(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a: Stacks,
        lora_b: Stacks,
        scale: float,
        rows: SortedRows,
        ranks: Ranks,
    ) -> None:
        torch.ops.softserve.add_lora(
            y, x, lora_a, lora_b, scale, rows.rows, rows.runs, ranks.by_slice
        )


class TorchProducts:
    """One pair of batched products for all slots that have equally many rows."""

    name = "torch"

    def add(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a: Stacks,
        lora_b: Stacks,
        scale: float,
        rows: SortedRows,
        ranks: Ranks,
    ) -> None:
        for group in rows.groups:
            offset = 0
            highest = ranks.by_slice[:, list(group.slots)].amax(dim=1).tolist()
            for index, (b, rank) in enumerate(zip(lora_b, highest, strict=True)):
                if rank:
                    shrunk = group.take(x)
                    if lora_a:
                        shrunk = shrunk @ group.of(lora_a[index])[:, :rank].mT * scale
                    delta = shrunk[..., :rank] @ group.of(b)[..., :rank].mT
                    group.add(y[:, offset : offset + b.shape[2]], delta)
                offset += b.shape[2]
