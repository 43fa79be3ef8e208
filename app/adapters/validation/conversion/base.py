"""What the types have in common."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

from app.adapters.archive import shown
from app.adapters.validation.config import TargetedConfig
from app.adapters.validation.low_rank import LowRanks, check_module
from app.adapters.validation.names import PREFIX, Tensors
from app.engine.protocol import Architecture
from app.errors import AdapterRejected
from softserve.schema.adapters import WEIGHTS_FILE
from softserve.schema.server import Limits


class ConvertedConfig(TargetedConfig):
    """A type that is served as a LoRA."""

    # As a person calls it.
    title: ClassVar[str]

    @abstractmethod
    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        """What is added to each module's weight, from tensors of which nothing is known yet.

        A shape is checked before its tensor is read, and a rank before anything of it is made.

        Raises:
            AdapterRejected: they are not those of this type, or not of low rank.
        """


def parts_by_module(
    tensors: Tensors,
    architecture: Architecture,
    parts: Sequence[str],
    *,
    shared: Collection[str] = (),
) -> dict[str, dict[str, str]]:
    """The names of the tensors of each linear module, by part.

    A module has all of `parts`. Those of `shared` belong to no module.

    Raises:
        AdapterRejected: a tensor is not known, or one is missing.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in tensors.names:
        if name in shared:
            continue
        module, _, part = name.removeprefix(PREFIX).rpartition(".")
        if not name.startswith(PREFIX) or part not in parts:
            raise AdapterRejected(
                f"tensor {shown(name)} is not of this type, whose tensors are called "
                f"{PREFIX}MODULE.{parts[0]}: save it with PEFT's save_pretrained"
            )
        check_module(name, module, "linear", architecture)
        modules.setdefault(module, {})[part] = name
    if not modules:
        raise AdapterRejected(f"{WEIGHTS_FILE} has no tensors of a module: train it before saving")
    for module, found in modules.items():
        if missing := [part for part in parts if part not in found]:
            raise AdapterRejected(
                f"module {shown(module)} has no {missing[0]}: save the adapter again"
            )
    return modules
