"""What is added to the weights of modules: matrices of low rank, which is what a LoRA is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.adapters.archive import shown
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.server import Limits

BYTES_OF_A_NUMBER = 4
A_OR_AN = {"linear": "a linear", "embedding": "an embedding"}


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a module's weight (out_features, in_features): b @ a.

    `a` is a tensor of shape (rank, in_features) and `b` one of (out_features, rank), in FP32. Of an
    embedding, in_features is the vocabulary, and out_features the width.
    """

    a: Any
    b: Any

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def __add__(self, other: "LowRank") -> "LowRank":
        return LowRank(_stacked(self.a, other.a), _stacked(self.b.T, other.b.T).T)


def _stacked(first: Any, second: Any) -> Any:
    """The rows of both."""
    rows = first.new_empty(len(first) + len(second), first.shape[1])
    rows[: len(first)], rows[len(first) :] = first, second
    return rows


# By PEFT's names of the modules.
LowRanks = Mapping[str, LowRank]


def added(first: LowRanks, second: LowRanks, limits: Limits) -> LowRanks:
    """The sum of two, whose ranks add up where both change a module. Raises AdapterRejected."""
    both = first.keys() & second.keys()
    for module in both:
        rank = first[module].rank + second[module].rank
        if rank > limits.max_lora_rank:
            raise AdapterRejected(
                f"module {shown(module)} has ranks {first[module].rank} and {second[module].rank}, "
                f"which are {rank} together, and the limit is {limits.max_lora_rank}: train with a "
                "lower r, or start the server with a higher --max-lora-rank"
            )
    return {**first, **second} | {module: first[module] + second[module] for module in both}


def check_loras_run(architecture: Architecture) -> None:
    """Raises AdapterRejected where the engine runs no LoRA at all."""
    if architecture.no_loras is not None:
        raise AdapterRejected(f"no LoRA can be added: {architecture.no_loras}")


def check_rank(rank: int, limits: Limits, what: str = "LoRA", cause: str = "r") -> None:
    """Raises AdapterRejected for what is of a higher rank than the engine makes room for."""
    if rank > limits.max_lora_rank:
        raise AdapterRejected(
            f"the {what} has rank {shown(rank)} and the limit is {limits.max_lora_rank}: train "
            f"with a lower {cause}, or start the server with a higher --max-lora-rank"
        )


def check_size(
    ranks: Mapping[str, int],
    architecture: Architecture,
    limits: Limits,
    what: str = "LoRA",
    cause: str = "r",
) -> None:
    """Whether a LoRA is within the limit as it is written. A small file can say a large one.

    Raises:
        AdapterTooLarge: it is not.
    """
    num_bytes = 0
    for module, rank in ranks.items():
        shape = architecture.modules[module]
        num_bytes += rank * (shape.in_features + shape.out_features) * BYTES_OF_A_NUMBER
    if num_bytes > limits.max_adapter_bytes:
        raise AdapterTooLarge(
            f"the {what} is a LoRA of {num_bytes:,} bytes and the limit is "
            f"{limits.max_adapter_bytes:,}: train fewer modules, or with a lower {cause}, or start "
            "the server with a higher --max-adapter-bytes"
        )


def module_shape(tensor: str, module: str, architecture: Architecture) -> ModuleShape:
    """That of the module that a tensor is for. Raises AdapterRejected if there is none."""
    shape = architecture.modules.get(module)
    if shape is None:
        raise AdapterRejected(
            f"tensor {shown(tensor)} is for a module that the base model does not have: check "
            "which base model the adapter was trained on"
        )
    return shape


def check_module(tensor: str, module: str, kind: str, architecture: Architecture) -> None:
    """Whether the engine adapts the module that a tensor is for. Raises AdapterRejected."""
    shape = module_shape(tensor, module, architecture)
    if module in architecture.unadapted:
        raise AdapterRejected(
            f"tensor {shown(tensor)} is for module {shown(module)}, to which the engine adds no "
            "LoRA in this base model: train without it in target_modules"
        )
    if shape.kind != kind:
        raise AdapterRejected(
            f"tensor {shown(tensor)} is for {A_OR_AN[kind]} module, and in the base model it is "
            f"{A_OR_AN[shape.kind]} one: check which base model it was trained on"
        )
