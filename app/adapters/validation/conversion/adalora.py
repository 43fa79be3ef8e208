"""AdaLoRA: W + B diag(E) A, with the ranks that training left (https://arxiv.org/abs/2303.10512).

By PEFT's code (its tuners/adalora/layer.py), times lora_alpha / (init_r + 1e-5).
"""

import re
from typing import ClassVar

from app.adapters.validation.config import ABSENT, Bias, ByModule, Number, PositiveInteger
from app.adapters.validation.conversion.base import ConvertedConfig, parts_by_module
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture
from softserve.schema.server import Limits

PARTS = ("lora_A", "lora_B", "lora_E")
# How a key of rank_pattern ends: with the tensor, and the adapter's name in some versions of PEFT.
KEY_END = re.compile(r"\.lora_E(?:\.[^.]+)?$")


class AdaLoRAConfig(ConvertedConfig):
    """`rank_pattern` has which of a module's `init_r` ranks are left."""

    title: ClassVar[str] = "AdaLoRA"

    bias: Bias = None
    init_r: PositiveInteger = 12
    lora_alpha: Number = 8
    rank_pattern: ByModule[list[bool]] = ABSENT

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        modules = parts_by_module(tensors, architecture, PARTS)
        left = {KEY_END.sub("", key): sum(kept) for key, kept in self.rank_pattern.items()}
        ranks = {module: left.get(module, self.init_r) for module in modules}
        self.check_ranks(ranks, architecture, limits)
        # By PEFT's code, an alpha that is not positive stands for init_r.
        alpha = self.lora_alpha if self.lora_alpha > 0 else self.init_r
        scaling = alpha / (self.init_r + 1e-5)
        low_ranks = {}
        for module, names in modules.items():
            rank, shape = ranks[module], architecture.modules[module]
            a = read_tensor(tensors, names["lora_A"], (rank, shape.in_features), "(rank, in)")
            b = read_tensor(tensors, names["lora_B"], (shape.out_features, rank), "(out, rank)")
            e = read_tensor(tensors, names["lora_E"], (rank, 1), "(rank, 1)")
            if rank:
                low_ranks[module] = LowRank(a.float() * e.float(), b.float() * scaling)
        return low_ranks
