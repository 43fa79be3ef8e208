"""Runs batches through the LoRA arithmetic of vLLM and of softserve; test_cpu_lora.py starts it.

It reads {batch: slots} from stdin, and writes {kernel: {operation: {batch: error}}} to stdout, of
`torch`, of `native` where it is compiled, and of vLLM; and {"changed": {batch: whether it is}}.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from app.engine.plugin.cpu_lora import SortedPunicaWrapper, best_products, by_rank
from app.engine.plugin.lora_products import Products, TorchProducts

SIZE_IN, SLICES, VOCABULARY_SIZE = 12, (16, 8), 24
MAX_RANK, NUM_SLOTS, MAX_TOKENS = 8, 3, 16
# What is in the slots: each of another rank, one that leaves this module alone.
RANKS = (8, 0, 4)
IDS = [11, 12, 13]

Stack = tuple[torch.Tensor, ...]
# Makes a wrapper for a CPU.
Kernel = Callable[[], PunicaWrapperCPU]
Operation = Callable[[Kernel, list[int]], float]


def stacked(ranks: tuple[int, ...], seed: int) -> tuple[Stack, Stack]:
    """A (slots, 1, max rank, in) and B (slots, 1, out, max rank) of two slices, as in an engine."""
    generator = torch.Generator().manual_seed(seed)
    lora_a = tuple(torch.zeros(NUM_SLOTS, 1, MAX_RANK, SIZE_IN) for _ in SLICES)
    lora_b = tuple(by_rank(torch.zeros(NUM_SLOTS, 1, size, MAX_RANK)) for size in SLICES)
    for a, b in zip(lora_a, lora_b, strict=True):
        for slot, rank in enumerate(ranks):
            a[slot, 0, :rank] = torch.randn(rank, SIZE_IN, generator=generator)
            b[slot, 0, :, :rank] = torch.randn(b.shape[2], rank, generator=generator)
    return lora_a, lora_b


def of_softserve(products: Products) -> PunicaWrapperCPU:
    wrapper = SortedPunicaWrapper(MAX_TOKENS, MAX_TOKENS, "cpu")
    wrapper.products = products
    return wrapper


def of_vllm() -> PunicaWrapperCPU:
    return PunicaWrapperCPU(MAX_TOKENS, MAX_TOKENS, "cpu")


def prepared(kernel: Kernel, slots: list[int], ids: list[int], num_tokens: int = 1) -> Any:
    """A wrapper for a step with so many tokens of each request."""
    wrapper = kernel()
    set_step(wrapper, slots, ids, num_tokens)
    return wrapper


def set_step(wrapper: Any, slots: list[int], ids: list[int], num_tokens: int = 1) -> None:
    # vLLM's id of the base model is 0.
    of_requests = tuple(ids[slot] if slot >= 0 else 0 for slot in slots)
    of_tokens = tuple(each for each in of_requests for _ in range(num_tokens))
    mapping = LoRAMapping(of_tokens, of_requests, is_prefill=False)
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


def linear(kernel: Kernel, slots: list[int]) -> float:
    x = random_rows(len(slots), SIZE_IN)
    lora_a, lora_b = stacked(RANKS, seed=2)
    y = torch.zeros(len(slots), sum(SLICES))
    prepared(kernel, slots, IDS).add_lora_linear(y, x, lora_a, lora_b, 1.0, SLICES)
    return error(y, expected(x, slots, lora_a, lora_b))


def logits(kernel: Kernel, slots: list[int]) -> float:
    x = random_rows(len(slots), SIZE_IN)
    lora_a, lora_b = stacked(RANKS, seed=3)
    y = torch.zeros(len(slots), SLICES[0])
    # One token of each request is sampled, of those that are computed.
    prepared(kernel, slots, IDS, num_tokens=2).add_lora_logits(y, x, lora_a[0], lora_b[0], 1.0)
    return error(y, expected(x, slots, lora_a, lora_b)[:, : SLICES[0]])


def embedding(kernel: Kernel, slots: list[int]) -> float:
    shrunk = random_rows(len(slots), MAX_RANK)
    _, lora_b = stacked(RANKS, seed=4)
    y = torch.zeros(len(slots), SLICES[0])
    prepared(kernel, slots, IDS).add_lora_embedding(y, shrunk, lora_b[0])
    wanted = [
        lora_b[0][slot, 0] @ row if slot >= 0 else torch.zeros(SLICES[0])
        for row, slot in zip(shrunk, slots, strict=True)
    ]
    return error(y, torch.stack(wanted))


def after_a_change(kernel: Kernel, slots: list[int]) -> float:
    """The same memory, of lower ranks in one step and of higher ones in the next."""
    x = random_rows(len(slots), SIZE_IN)
    lora_a, lora_b = stacked((1, 0, 0), seed=5)
    wrapper = prepared(kernel, slots, IDS)
    wrapper.add_lora_linear(torch.zeros(len(slots), sum(SLICES)), x, lora_a, lora_b, 1.0, SLICES)
    for old, new in zip((*lora_a, *lora_b), sum(stacked((4, 8, 2), seed=6), ()), strict=True):
        old.copy_(new)
    set_step(wrapper, slots, [each + 10 for each in IDS])
    y = torch.zeros(len(slots), sum(SLICES))
    wrapper.add_lora_linear(y, x, lora_a, lora_b, 1.0, SLICES)
    return error(y, expected(x, slots, lora_a, lora_b))


def is_changed(slots: list[int]) -> bool:
    """Whether a batch's adapters change the layer."""
    _, lora_b = stacked(RANKS, seed=2)
    wrapper = prepared(partial(of_softserve, TorchProducts()), slots, IDS)
    changes: bool = wrapper.changes(lora_b)
    return changes


OPERATIONS: dict[str, Operation] = {
    "linear": linear,
    "logits": logits,
    "embedding": embedding,
    "after another adapter took the slot": after_a_change,
}


def errors(
    kernel: Kernel, operations: dict[str, Operation], batches: dict[str, list[int]]
) -> dict[str, dict[str, float]]:
    return {
        name: {batch: operation(kernel, slots) for batch, slots in batches.items()}
        for name, operation in operations.items()
    }


def main() -> None:
    batches: dict[str, list[int]] = json.load(sys.stdin)
    measured: dict[str, Any] = {"vLLM": errors(of_vllm, {"linear": linear}, batches)}
    measured["changed"] = {batch: is_changed(slots) for batch, slots in batches.items()}
    for products in (TorchProducts(), best_products()):
        kernel = partial(of_softserve, products)
        measured[products.name] = errors(kernel, OPERATIONS, batches)
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
