"""What the products of LoRAs cost on this CPU, beside those of the base model's linear layers.

    python -m loadtest.lora_kernel [--threads 2] [--rounds 9]

The linear layers of SmolLM2-135M in BF16, with random weights and no engine around them. In every
round the base model's products, the compiled ones of LoRAs and PyTorch's take turns, on the same
rows; the table has medians of one step of all layers, in milliseconds.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.engine.plugin.lora_products import (
    NativeProducts,
    Products,
    Ranks,
    SortedRows,
    Stacks,
    TorchProducts,
)
from app.engine.plugin.native import library

NUM_LAYERS, MAX_RANK, DTYPE = 30, 32, torch.bfloat16
# By module: the width of its input, and those of its slices.
MODULES = {
    "qkv_proj": (576, (576, 192, 192)),
    "o_proj": (576, (576,)),
    "gate_up_proj": (576, (1536, 1536)),
    "down_proj": (1536, (576,)),
}
Changes = dict[str, tuple[bool, ...]]
Q_AND_V: Changes = {"qkv_proj": (True, False, True)}
ALL: Changes = {name: (True,) * len(sizes) for name, (_, sizes) in MODULES.items()}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Load:
    """LoRAs that share a step: the rank of each, and the slices that they change of each module."""

    name: str
    ranks: list[int]
    changed: Changes


LOADS = [
    Load("1 LoRA, rank 8, q and v", [8], Q_AND_V),
    Load("8 LoRAs, rank 8, q and v", [8] * 8, Q_AND_V),
    Load("8 LoRAs, one of rank 32, q and v", [32, *[8] * 7], Q_AND_V),
    Load("64 LoRAs, rank 8, q and v", [8] * 64, Q_AND_V),
    Load("8 LoRAs, rank 8, all linear", [8] * 8, ALL),
]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer with its LoRAs; without any, `ranks` has no slots."""

    weight: torch.Tensor
    lora_a: Stacks
    lora_b: Stacks
    ranks: Ranks


@cli.command()
def main(
    threads: Annotated[int, typer.Option(help="Threads of the products.")] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 9,
) -> None:
    """Measure decode of 64 tokens and prefill of 1,024."""
    torch.set_num_threads(threads)
    library.load()
    table = Table("step", "LoRAs", "base", "native", "torch", "native / base", "torch / base")
    for name, num_rows in (("decode of 64", 64), ("prefill of 1,024", 1024)):
        for load in track(LOADS, name, console=Console(stderr=True)):
            base, native, in_torch = measure(load, num_rows, rounds)
            shares = (f"{native / base:.3f}", f"{in_torch / base:.3f}")
            table.add_row(name, load.name, *map("{:.2f}".format, (base, native, in_torch)), *shares)
    Console(width=120).print(table)


def measure(load: Load, num_rows: int, rounds: int) -> list[float]:
    """Medians of the base model's products, the compiled ones and PyTorch's, in milliseconds."""
    layers = [layer_of(name, load) for _ in range(NUM_LAYERS) for name in MODULES]
    inputs = {size: torch.randn(num_rows, size).to(DTYPE) for size, _ in MODULES.values()}
    outputs = {
        len(each.weight): torch.zeros(num_rows, len(each.weight)).to(DTYPE) for each in layers
    }
    # As requests come: one LoRA after the other, not sorted.
    rows = SortedRows.by(torch.arange(num_rows) % len(load.ranks))

    def base() -> None:
        for layer in layers:
            torch.nn.functional.linear(inputs[layer.weight.shape[1]], layer.weight)

    def with_products(products: Products) -> None:
        for layer in layers:
            if layer.ranks.slots:
                x, y = inputs[layer.weight.shape[1]], outputs[len(layer.weight)]
                products.add(y, x, layer.lora_a, layer.lora_b, 1.0, rows, layer.ranks)

    steps: list[Callable[[], None]] = [
        base,
        lambda: with_products(NativeProducts()),
        lambda: with_products(TorchProducts()),
    ]
    seconds: list[list[float]] = [[], [], []]
    for turn in range(rounds + 1):
        for step, taken in zip(steps, seconds, strict=True):
            began = time.perf_counter()
            step()
            if turn:  # The first warms up.
                taken.append(time.perf_counter() - began)
    return [1000 * statistics.median(taken) for taken in seconds]


def layer_of(name: str, load: Load) -> Layer:
    size_in, sizes = MODULES[name]
    weight = torch.randn(sum(sizes), size_in).to(DTYPE)
    changed = load.changed.get(name)
    if changed is None:
        return Layer(weight, (), (), Ranks(len(sizes), 0))
    num_slots = len(load.ranks)
    lora_a = tuple(torch.zeros(num_slots, 1, MAX_RANK, size_in, dtype=DTYPE) for _ in sizes)
    # As app/engine/plugin/cpu_lora.py lays it out.
    lora_b = tuple(torch.zeros(num_slots, 1, MAX_RANK, size, dtype=DTYPE).mT for size in sizes)
    for a, b, is_changed in zip(lora_a, lora_b, changed, strict=True):
        for slot, rank in enumerate(load.ranks if is_changed else []):
            a[slot, 0, :rank] = torch.randn(rank, size_in) / size_in
            b[slot, 0, :, :rank] = torch.randn(b.shape[2], rank)
    ranks = Ranks(len(sizes), num_slots)
    ranks.update(tuple(range(num_slots)), tuple(b.mT for b in lora_b))
    return Layer(weight, lora_a, lora_b, ranks)


if __name__ == "__main__":
    cli()
