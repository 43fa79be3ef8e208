"""LoHa: W + (w1_a w1_b) * (w2_a w2_b), entry by entry, times alpha / r.

By PEFT's code (its tuners/loha/layer.py; https://arxiv.org/abs/2108.06098). The product of two
matrices of rank r is of rank r * r: its columns are the products of each column of w1_a with each
of w2_a, and its rows those of the others.
"""

from typing import Any, ClassVar

from app.adapters.validation.by_module import by_module
from app.adapters.validation.config import ABSENT, ByModule, Number, PositiveInteger
from app.adapters.validation.conversion.base import ConvertedConfig, parts_by_module
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from softserve.schema.server import Limits

PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class LoHaConfig(ConvertedConfig):
    title: ClassVar[str] = "LoHa"
    cause_of_rank: ClassVar[str] = "r (the rank is its square)"

    r: PositiveInteger = 8
    alpha: Number = 8
    rank_pattern: ByModule[PositiveInteger] = ABSENT
    alpha_pattern: ByModule[Number] = ABSENT

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        modules = parts_by_module(tensors, architecture, PARTS)
        rs = by_module("rank_pattern", self.rank_pattern, modules, self.r, architecture)
        alphas = by_module("alpha_pattern", self.alpha_pattern, modules, self.alpha, architecture)
        self.check_ranks({module: r * r for module, r in rs.items()}, architecture, limits)
        low_ranks = {}
        for module, names in modules.items():
            r, shape = rs[module], architecture.modules[module]
            a1, b1, a2, b2 = _read(tensors, names, r, shape)
            low_ranks[module] = LowRank(
                # (r, 1, in) * (1, r, in), and (out, r, 1) * (out, 1, r)
                (b1[:, None] * b2[None]).reshape(r * r, shape.in_features),
                (a1[:, :, None] * a2[:, None]).reshape(shape.out_features, r * r)
                * (alphas[module] / r),
            )
        return low_ranks


def _read(tensors: Tensors, names: dict[str, str], r: int, shape: ModuleShape) -> list[Any]:
    columns, rows = (shape.out_features, r), (r, shape.in_features)
    return [
        read_tensor(tensors, names[part], size, meaning).float()
        for part, size, meaning in zip(
            PARTS, (columns, rows) * 2, ("(out, r)", "(r, in)") * 2, strict=True
        )
    ]
