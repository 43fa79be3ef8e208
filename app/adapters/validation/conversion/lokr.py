"""LoKr: W + kron(w1, w2) * alpha / r (https://arxiv.org/abs/2309.14859).

By PEFT's code (its tuners/lokr/layer.py), the sizes of w1 and w2 are factors of the module's, and
each is whole, or the product of two matrices whose inner size is r. The Kronecker product of
products is the product of Kronecker products: kron(p q, s t) = kron(p, s) kron(q, t).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from app.adapters.validation.by_module import by_module
from app.adapters.validation.config import ABSENT, ByModule, Flag, Integer, Number, PositiveInteger
from app.adapters.validation.conversion.base import ConvertedConfig, check_parts, known_parts
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from softserve.schema.server import Limits

PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the two matrices: of shape (rows, columns), in the tensors of these names.

    `r` is the inner size where it is the product of two, and None where it is whole.
    """

    part: str
    rows: int
    columns: int
    r: int | None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.part,) if self.r is None else (f"{self.part}_a", f"{self.part}_b")

    @property
    def rank(self) -> int:
        side = min(self.rows, self.columns)
        return side if self.r is None else min(side, self.r)

    def read(self, tensors: Tensors, names: dict[str, str]) -> tuple[Any, Any]:
        """Two matrices whose product it is, with its rank between them."""
        import torch

        if self.r is None:
            shape = (self.rows, self.columns)
            whole = read_tensor(tensors, names[self.part], shape, "by decompose_factor").float()
        else:
            part_a, part_b = self.parts
            a = read_tensor(tensors, names[part_a], (self.rows, self.r), "(rows, r)").float()
            b = read_tensor(tensors, names[part_b], (self.r, self.columns), "(r, columns)").float()
            if self.r <= self.rank:
                return a, b
            whole = a @ b
        identity = torch.eye(self.rank)
        return (identity, whole) if self.rows <= self.columns else (whole, identity)


class LoKrConfig(ConvertedConfig):
    title: ClassVar[str] = "LoKr"
    cause_of_rank: ClassVar[str] = "r, or a decompose_factor such as 4"

    r: PositiveInteger = 8
    alpha: Number = 8
    rank_pattern: ByModule[PositiveInteger] = ABSENT
    alpha_pattern: ByModule[Number] = ABSENT
    decompose_both: Flag = False
    decompose_factor: Integer = -1

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        modules = known_parts(tensors, architecture, PARTS)
        rs = by_module("rank_pattern", self.rank_pattern, modules, self.r, architecture)
        alphas = by_module("alpha_pattern", self.alpha_pattern, modules, self.alpha, architecture)
        factors = {
            module: self._factors(architecture.modules[module], rs[module]) for module in modules
        }
        ranks = {module: w1.rank * w2.rank for module, (w1, w2) in factors.items()}
        self.check_ranks(ranks, architecture, limits)
        for module, (w1, w2) in factors.items():
            check_parts(module, modules[module], w1.parts + w2.parts)
        return {
            module: _low_rank(*factors[module], tensors, names, alphas[module] / rs[module])
            for module, names in modules.items()
        }

    def _factors(self, shape: ModuleShape, r: int) -> tuple[Factor, Factor]:
        """PEFT decomposes a matrix whose longer side is above 2 * r; of w1, where it is told to."""
        rows1, rows2 = _factorization(shape.out_features, self.decompose_factor)
        columns1, columns2 = _factorization(shape.in_features, self.decompose_factor)
        is_decomposed1 = self.decompose_both and 2 * r < max(rows1, columns1)
        is_decomposed2 = 2 * r < max(rows2, columns2)
        return (
            Factor("lokr_w1", rows1, columns1, r if is_decomposed1 else None),
            Factor("lokr_w2", rows2, columns2, r if is_decomposed2 else None),
        )


def _factorization(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product it is: by PEFT's rule the factor, or the next that can be.

    It is the highest divisor up to the factor and up to the root; -1 is any factor.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    highest = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    divisor = next((n for n in range(highest, 1, -1) if size % n == 0), 1)
    return divisor, size // divisor


def _low_rank(
    w1: Factor, w2: Factor, tensors: Tensors, names: dict[str, str], scaling: float
) -> LowRank:
    import torch

    b1, a1 = w1.read(tensors, names)
    b2, a2 = w2.read(tensors, names)
    return LowRank(torch.kron(a1, a2), torch.kron(b1, b2) * scaling)
