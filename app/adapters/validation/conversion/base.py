"""What the types have in common."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from app.adapters.archive import shown
from app.adapters.validation.config import TargetedConfig
from app.adapters.validation.low_rank import LowRanks, check_module, check_rank, check_size
from app.adapters.validation.names import PREFIX, Tensors
from app.engine.protocol import Architecture
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits


class ConvertedConfig(TargetedConfig):
    """A type that is served as a LoRA."""

    # As a person calls it, and what its rank comes from.
    title: ClassVar[str]
    cause_of_rank: ClassVar[str] = "r"

    @abstractmethod
    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        """What is added to each module's weight, from tensors of which nothing is known yet.

        A shape is checked before its tensor is read, and a rank before anything of it is made.

        Raises:
            AdapterRejected: they are not those of this type, or not of low rank.
        """

    def check_ranks(
        self, ranks: Mapping[str, int], architecture: Architecture, limits: Limits
    ) -> None:
        """Whether a LoRA with these ranks is within the limits. A small file can say a large one.

        Raises:
            AdapterRejected: a rank is too high.
            AdapterTooLarge: together they are too large.
        """
        for rank in ranks.values():
            check_rank(rank, limits, self.title, self.cause_of_rank)
        check_size(ranks, architecture, limits, self.title, self.cause_of_rank)


def parts_by_module(
    tensors: Tensors,
    architecture: Architecture,
    parts: Sequence[str],
    *,
    shared: Collection[str] = (),
) -> dict[str, dict[str, str]]:
    """The names of the tensors of each linear module, by part.

    A module has all of `parts`. Those of `shared` belong to no module, and are there.

    Raises:
        AdapterRejected: a tensor is not known, or one is missing.
    """
    modules = known_parts(tensors, architecture, parts, shared=shared)
    for module, found in modules.items():
        check_parts(module, found, parts)
    return modules


def known_parts(
    tensors: Tensors,
    architecture: Architecture,
    parts: Sequence[str],
    *,
    shared: Collection[str] = (),
) -> dict[str, dict[str, str]]:
    """The same, where not every module has all of `parts`."""
    modules: dict[str, dict[str, str]] = {}
    for name in tensors.names:
        if name in shared:
            continue
        part = next((part for part in parts if name.endswith(f".{part}")), None)
        if part is None or not name.startswith(PREFIX):
            raise AdapterRejected(
                f"tensor {shown(name)} is not of this type, whose tensors are called "
                f"{PREFIX}MODULE.{parts[0]}: save it with PEFT's save_pretrained"
            )
        module = name.removeprefix(PREFIX).removesuffix(f".{part}")
        check_module(name, module, "linear", architecture)
        modules.setdefault(module, {})[part] = name
    if not modules:
        raise AdapterRejected(f"{WEIGHTS_FILE} has no tensors of a module: train it before saving")
    if missing := [name for name in shared if name not in tensors.names]:
        raise AdapterRejected(f"{WEIGHTS_FILE} has no {missing[0]}: save the adapter again")
    return modules


def check_parts(module: str, found: Collection[str], expected: Collection[str]) -> None:
    """Raises AdapterRejected unless exactly these parts of a module are there."""
    if missing := [part for part in expected if part not in found]:
        raise AdapterRejected(f"module {shown(module)} has no {missing[0]}: save the adapter again")
    if others := [part for part in found if part not in expected]:
        raise AdapterRejected(
            f"module {shown(module)} has a {others[0]}, and by {CONFIG_FILE} PEFT has none there: "
            "send the two files that were saved together"
        )
