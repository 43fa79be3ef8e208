"""Runs batches through the LoRA arithmetic of vLLM and of softserve; test_cpu_lora.py starts it.

It reads {batch: slots} from stdin, and writes {class: {operation: {batch: error}}} to stdout.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from app.engine.plugin.cpu_lora import GroupedPunicaWrapper

SIZE_IN, SLICES, VOCABULARY_SIZE = 12, (16, 8), 24
MAX_RANK, NUM_SLOTS, MAX_TOKENS = 8, 3, 16
# What is in the slots: each of another rank, one that leaves this module alone.
RANKS = (8, 0, 4)
IDS = [11, 12, 13]

Stack = tuple[torch.Tensor, ...]
Operation = Callable[[type[PunicaWrapperCPU], list[int]], float]


def stacked(ranks: tuple[int, ...], seed: int) -> tuple[Stack, Stack]:
    """A (slots, 1, max rank, in) and B (slots, 1, out, max rank) of two slices."""
    generator = torch.Generator().manual_seed(seed)
    lora_a = tuple(torch.zeros(NUM_SLOTS, 1, MAX_RANK, SIZE_IN) for _ in SLICES)
    lora_b = tuple(torch.zeros(NUM_SLOTS, 1, size, MAX_RANK) for size in SLICES)
    for a, b in zip(lora_a, lora_b, strict=True):
        for slot, rank in enumerate(ranks):
            a[slot, 0, :rank] = torch.randn(rank, SIZE_IN, generator=generator)
            b[slot, 0, :, :rank] = torch.randn(b.shape[2], rank, generator=generator)
    return lora_a, lora_b


def prepared(kind: type[PunicaWrapperCPU], slots: list[int], ids: list[int]) -> Any:
    """A wrapper for a step with one token of each request."""
    wrapper = kind(MAX_TOKENS, MAX_TOKENS, "cpu")
    set_step(wrapper, slots, ids)
    return wrapper


def set_step(wrapper: Any, slots: list[int], ids: list[int]) -> None:
    # vLLM's id of the base model is 0.
    of_tokens = tuple(ids[slot] if slot >= 0 else 0 for slot in slots)
    mapping = LoRAMapping(of_tokens, of_tokens, is_prefill=False)
    wrapper.update_metadata(mapping, ids, NUM_SLOTS, VOCABULARY_SIZE)


def expected(x: torch.Tensor, slots: list[int], lora_a: Stack, lora_b: Stack) -> torch.Tensor:
    rows = [
        torch.cat([b[slot, 0] @ (a[slot, 0] @ row) for a, b in zip(lora_a, lora_b, strict=True)])
        if slot >= 0
        else torch.zeros(sum(SLICES))
        for row, slot in zip(x, slots, strict=True)
    ]
    return torch.stack(rows)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max())


def random_rows(num_rows: int, width: int) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(1))


def linear(kind: type[PunicaWrapperCPU], slots: list[int]) -> float:
    x = random_rows(len(slots), SIZE_IN)
    lora_a, lora_b = stacked(RANKS, seed=2)
    y = torch.zeros(len(slots), sum(SLICES))
    prepared(kind, slots, IDS).add_lora_linear(y, x, lora_a, lora_b, 1.0, SLICES)
    return error(y, expected(x, slots, lora_a, lora_b))


def logits(kind: type[PunicaWrapperCPU], slots: list[int]) -> float:
    x = random_rows(len(slots), SIZE_IN)
    lora_a, lora_b = stacked(RANKS, seed=3)
    y = torch.zeros(len(slots), SLICES[0])
    prepared(kind, slots, IDS).add_lora_logits(y, x, lora_a[0], lora_b[0], 1.0)
    return error(y, expected(x, slots, lora_a, lora_b)[:, : SLICES[0]])


def embedding(kind: type[PunicaWrapperCPU], slots: list[int]) -> float:
    shrunk = random_rows(len(slots), MAX_RANK)
    _, lora_b = stacked(RANKS, seed=4)
    y = torch.zeros(len(slots), SLICES[0])
    prepared(kind, slots, IDS).add_lora_embedding(y, shrunk, lora_b[0])
    wanted = [
        lora_b[0][slot, 0] @ row if slot >= 0 else torch.zeros(SLICES[0])
        for row, slot in zip(shrunk, slots, strict=True)
    ]
    return error(y, torch.stack(wanted))


def after_a_change(kind: type[PunicaWrapperCPU], slots: list[int]) -> float:
    """The same memory, of lower ranks in one step and of higher ones in the next."""
    x = random_rows(len(slots), SIZE_IN)
    lora_a, lora_b = stacked((1, 0, 0), seed=5)
    wrapper = prepared(kind, slots, IDS)
    wrapper.add_lora_linear(torch.zeros(len(slots), sum(SLICES)), x, lora_a, lora_b, 1.0, SLICES)
    for old, new in zip((*lora_a, *lora_b), sum(stacked((4, 8, 2), seed=6), ()), strict=True):
        old.copy_(new)
    set_step(wrapper, slots, [each + 10 for each in IDS])
    y = torch.zeros(len(slots), sum(SLICES))
    wrapper.add_lora_linear(y, x, lora_a, lora_b, 1.0, SLICES)
    return error(y, expected(x, slots, lora_a, lora_b))


OPERATIONS: dict[str, Operation] = {
    "linear": linear,
    "logits": logits,
    "embedding": embedding,
    "after another adapter took the slot": after_a_change,
}


def main() -> None:
    batches: dict[str, list[int]] = json.load(sys.stdin)
    measured = {
        GroupedPunicaWrapper.__name__: {
            name: {
                batch: operation(GroupedPunicaWrapper, slots) for batch, slots in batches.items()
            }
            for name, operation in OPERATIONS.items()
        },
        PunicaWrapperCPU.__name__: {
            "linear": {batch: linear(PunicaWrapperCPU, slots) for batch, slots in batches.items()}
        },
    }
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
