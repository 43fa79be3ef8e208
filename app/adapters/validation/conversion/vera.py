"""VeRA: W + diag(b) B diag(d) A, with A and B that all modules share (https://arxiv.org/abs/2310.11454).

By PEFT's code (its tuners/vera/), A and B are random, and as large as the largest module: of each,
a module takes as much as it has room for. They are saved too, unless `save_projection` is off.
"""

import math
from collections.abc import Collection, Iterator
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

A, B = f"{SHARED_PREFIX}vera_A", f"{SHARED_PREFIX}vera_B"
LAMBDAS = ("vera_lambda_b", "vera_lambda_d")


class VeRAConfig(ConvertedConfig):
    title: ClassVar[str] = "VeRA"

    r: PositiveInteger = 256
    projection_prng_key: Seed = 0
    save_projection: Flag = True

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        if not self.save_projection and A in tensors.names:
            raise AdapterRejected(
                f"{WEIGHTS_FILE} has vera_A, and by save_projection in {CONFIG_FILE} it is not "
                "used: set it to true there, or save the adapter again without vera_A and vera_B"
            )
        shared = (A, B) if self.save_projection else ()
        modules = parts_by_module(tensors, architecture, LAMBDAS, shared=shared)
        self.check_ranks(dict.fromkeys(modules, self.r), architecture, limits)
        projection_a, projection_b = self._projections(tensors, modules, architecture)
        low_ranks = {}
        for module, names in modules.items():
            shape = architecture.modules[module]
            b = read_tensor(tensors, names["vera_lambda_b"], (shape.out_features,), "(out,)")
            d = read_tensor(tensors, names["vera_lambda_d"], (self.r,), "(r,)")
            low_ranks[module] = LowRank(
                d.float()[:, None] * projection_a[:, : shape.in_features],
                b.float()[:, None] * projection_b[: shape.out_features],
            )
        return low_ranks

    def _projections(
        self, tensors: Tensors, modules: Collection[str], architecture: Architecture
    ) -> tuple[Any, Any]:
        """A of shape (r, in_features of the largest) and B of (out_features, r)."""
        shapes = [architecture.modules[name] for name in self._adapted(modules, architecture)]
        shape_a = (self.r, max(shape.in_features for shape in shapes))
        shape_b = (max(shape.out_features for shape in shapes), self.r)
        if self.save_projection:
            a = read_tensor(tensors, A, shape_a, "(r, in of the largest module)")
            b = read_tensor(tensors, B, shape_b, "(out of the largest module, r)")
            return a.float(), b.float()
        a, b = _random(self.projection_prng_key, shape_a, shape_b)
        return a, b

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


def _random(key: int, *shapes: tuple[int, int]) -> Iterator[Any]:
    """What PEFT makes from `projection_prng_key`, one after another, to the last bit."""
    import torch

    generator = torch.Generator().manual_seed(key)
    for shape in shapes:
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
        yield torch.empty(shape).uniform_(-bound, bound, generator=generator)
