"""VeRA: W + diag(b) B diag(d) A, with A and B that all modules share.

By PEFT's code (its tuners/vera/; https://arxiv.org/abs/2310.11454), A and B are random, and as
large as the largest module: of each, a module takes as much as it has room for. They are saved too,
unless `save_projection` is off.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from app.adapters.validation.config import Flag, PositiveInteger, Seed
from app.adapters.validation.conversion.base import ConvertedConfig, parts_by_module
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import SHARED_PREFIX, Tensors
from app.adapters.validation.patterns import CannotRun
from app.adapters.validation.targets import named_modules
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits


class VeRAConfig(ConvertedConfig):
    title: ClassVar[str] = "VeRA"
    prefix: ClassVar[str] = "vera"
    # How often A and d have r rows: the first r are what is added.
    num_rows: ClassVar[int] = 1

    r: PositiveInteger = 256
    projection_prng_key: Seed = 0
    save_projection: Flag = True

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        lambda_b, lambda_d = f"{self.prefix}_lambda_b", f"{self.prefix}_lambda_d"
        shared = self._shared(tensors)
        modules = parts_by_module(tensors, architecture, (lambda_b, lambda_d), shared=shared)
        self.check_ranks(dict.fromkeys(modules, self.r), architecture, limits)
        projection_a, projection_b = self._projections(tensors, shared, modules, architecture)
        low_ranks = {}
        for module, names in modules.items():
            shape = architecture.modules[module]
            b = read_tensor(tensors, names[lambda_b], (shape.out_features,), "(out,)")
            d = read_tensor(tensors, names[lambda_d], (self.num_rows * self.r,), "what r says")
            low_ranks[module] = LowRank(
                d.float()[: self.r, None] * projection_a[: self.r, : shape.in_features],
                b.float()[:, None] * projection_b[: shape.out_features],
            )
        return low_ranks

    def _shared(self, tensors: Tensors) -> list[str]:
        """The names of A and B, where they are saved."""
        shared = [f"{SHARED_PREFIX}{self.prefix}_{half}" for half in "AB"]
        if self.save_projection:
            return shared
        if found := [name for name in shared if name in tensors.names]:
            raise AdapterRejected(
                f"{WEIGHTS_FILE} has {found[0]}, and by save_projection in {CONFIG_FILE} it is not "
                "used: set it to true there, or save the adapter again without A and B"
            )
        return []

    def _projections(
        self,
        tensors: Tensors,
        shared: Sequence[str],
        modules: Collection[str],
        architecture: Architecture,
    ) -> list[Any]:
        """A, which has the in_features of the largest module, and B, which has the out_features."""
        shapes = [architecture.modules[name] for name in self._adapted(modules, architecture)]
        sizes = (
            (self.num_rows * self.r, max(shape.in_features for shape in shapes)),
            (max(shape.out_features for shape in shapes), self.r),
        )
        if not shared:
            return _random(self.projection_prng_key, sizes)
        meaning = "what r and the largest module say"
        return [
            read_tensor(tensors, name, size, meaning).float()
            for name, size in zip(shared, sizes, strict=True)
        ]

    def _adapted(self, modules: Collection[str], architecture: Architecture) -> set[str]:
        """What PEFT looks for the largest in: modules that are named and have no tensors too."""
        try:
            is_named = named_modules(self, architecture)
        except CannotRun:
            is_named = None
        if is_named is None:
            return set(modules)
        linear = (name for name, shape in architecture.modules.items() if shape.kind == "linear")
        return {*modules, *filter(is_named, linear)}


class PVeRAConfig(VeRAConfig):
    """The latter half of A and d is the spread of what training samples around the former."""

    title: ClassVar[str] = "PVeRA"
    prefix: ClassVar[str] = "pvera"
    num_rows: ClassVar[int] = 2
    unsupported: ClassVar[dict[str, str]] = {
        "sample_at_inference": "the engine adds the same every time: train with it off"
    }


def _random(key: int, sizes: Iterable[tuple[int, int]]) -> list[Any]:
    """What PEFT makes from `projection_prng_key`, one after another, to the last bit."""
    import torch

    generator = torch.Generator().manual_seed(key)
    return [
        torch.nn.init.kaiming_uniform_(torch.empty(size), generator=generator) for size in sizes
    ]
