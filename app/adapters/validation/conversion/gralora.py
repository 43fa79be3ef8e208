"""GraLoRA: a weight is cut into k by k blocks, each with a LoRA of its own, of rank r / k.

By PEFT's code (its tuners/gralora/layer.py; https://arxiv.org/abs/2505.20355), and times
alpha / (r + hybrid_r). A block's LoRA has a place of its own between the factors, so that together
they are of rank k * k * (r / k). With `hybrid_r`, there is one LoRA of that rank for all of them.
"""

from typing import Any, ClassVar

from app.adapters.archive import shown
from app.adapters.validation.config import NonNegativeInteger, Number, PositiveInteger
from app.adapters.validation.conversion.base import ConvertedConfig, parts_by_module
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE
from softserve.schema.server import Limits

A, B = "gralora_A", "gralora_B"
HYBRID_A, HYBRID_B = "gralora_A_general.weight", "gralora_B_general.weight"


class GraLoRAConfig(ConvertedConfig):
    title: ClassVar[str] = "GraLoRA"
    cause_of_rank: ClassVar[str] = "r (the rank is gralora_k * r + hybrid_r)"

    r: PositiveInteger = 32
    hybrid_r: NonNegativeInteger = 0
    gralora_k: PositiveInteger = 2
    alpha: Number = 64

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        parts = (A, B, HYBRID_A, HYBRID_B) if self.hybrid_r else (A, B)
        modules = parts_by_module(tensors, architecture, parts)
        rank = self.gralora_k * self.r + self.hybrid_r
        self.check_ranks(dict.fromkeys(modules, rank), architecture, limits)
        for module in modules:
            self._check_blocks(module, architecture.modules[module])
        return {
            module: self._low_rank(tensors, names, architecture.modules[module])
            for module, names in modules.items()
        }

    def _check_blocks(self, module: str, shape: ModuleShape) -> None:
        for size in (self.r, shape.in_features, shape.out_features):
            if size % self.gralora_k:
                raise AdapterRejected(
                    f"{CONFIG_FILE} has gralora_k {shown(self.gralora_k)}, which does not divide r "
                    f"and the sizes of module {shown(module)} ({shape.in_features:,} and "
                    f"{shape.out_features:,}), so that PEFT would not load it: train with another"
                )

    def _low_rank(self, tensors: Tensors, names: dict[str, str], shape: ModuleShape) -> LowRank:
        import torch

        k, r = self.gralora_k, self.r
        size_a, size_b = (k, shape.in_features // k, r), (k, r, shape.out_features // k)
        blocks_a = read_tensor(tensors, names[A], size_a, "(k, in / k, r)").float()
        blocks_b = read_tensor(tensors, names[B], size_b, "(k, r, out / k)").float()
        a = torch.block_diag(*blocks_a.transpose(1, 2))
        b = _spread(blocks_b)
        if self.hybrid_r:
            rows, columns = (self.hybrid_r, shape.in_features), (shape.out_features, self.hybrid_r)
            hybrid_a = read_tensor(tensors, names[HYBRID_A], rows, "(hybrid_r, in)").float()
            hybrid_b = read_tensor(tensors, names[HYBRID_B], columns, "(out, hybrid_r)").float()
            a, b = torch.cat([a, hybrid_a]), torch.cat([b, hybrid_b], dim=1)
        return LowRank(a, b * (self.alpha / (r + self.hybrid_r)))


def _spread(blocks: Any) -> Any:
    """Of shape (out, k * r), whose columns are by blocks of inputs, of outputs, and rank.

    Block j of the outputs takes r / k of each block of inputs, which are its j-th.
    """
    k, r, width = blocks.shape
    columns = blocks.new_zeros(k, width, k, k, r // k)
    for j in range(k):
        columns[j, :, :, j] = blocks[j].T.reshape(width, k, r // k)
    return columns.reshape(k * width, k * r)
