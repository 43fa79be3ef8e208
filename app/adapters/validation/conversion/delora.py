"""DeLoRA: W + B diag(lambda / r / (|A_i| |B_i|)) A diag(w_norm) (https://arxiv.org/abs/2503.18225).

By PEFT's code (its tuners/delora/layer.py). The norms of the base model's columns are those of when
it was made: they are saved.
"""

from typing import ClassVar

from app.adapters.validation.by_module import by_module
from app.adapters.validation.config import ABSENT, ByModule, PositiveInteger
from app.adapters.validation.conversion.base import ConvertedConfig, parts_by_module
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture
from softserve.schema.server import Limits

PARTS = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
# What a norm is at least.
MIN_NORM = 1e-4


class DeLoRAConfig(ConvertedConfig):
    """`lambda_pattern` and `delora_lambda` are where the training of lambda begins."""

    title: ClassVar[str] = "DeLoRA"

    r: PositiveInteger = 8
    rank_pattern: ByModule[PositiveInteger] = ABSENT

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        modules = parts_by_module(tensors, architecture, PARTS)
        ranks = by_module("rank_pattern", self.rank_pattern, modules, self.r, architecture)
        self.check_ranks(ranks, architecture, limits)
        low_ranks = {}
        for module, names in modules.items():
            rank, shape = ranks[module], architecture.modules[module]
            sizes = (
                ((rank, shape.in_features), "(r, in)"),
                ((shape.out_features, rank), "(out, r)"),
                ((1,), "one number"),
                ((shape.in_features,), "(in,)"),
            )
            a, b, strength, w_norm = (
                read_tensor(tensors, names[part], *size).float()
                for part, size in zip(PARTS, sizes, strict=True)
            )
            norms = a.norm(dim=1).clamp(min=MIN_NORM) * b.norm(dim=0).clamp(min=MIN_NORM)
            low_ranks[module] = LowRank(a * w_norm, b * (strength / rank / norms))
        return low_ranks
