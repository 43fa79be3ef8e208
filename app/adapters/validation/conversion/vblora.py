"""VB-LoRA: a LoRA that is put together from a bank of vectors (https://arxiv.org/abs/2405.15179).

By PEFT's code (its tuners/vblora/), each part of A and B that is as long as a vector is the mean of
`topk` vectors, weighted by the softmax of their logits. What is saved is the logits of all vectors
or, with `save_only_topk_weights`, the chosen vectors' places in the bank and all weights but the
last.
"""

from typing import Any, ClassVar

from app.adapters.archive import shown
from app.adapters.validation.config import Flag, PositiveInteger, wrong_field
from app.adapters.validation.conversion.base import ConvertedConfig, parts_by_module
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import SHARED_PREFIX, Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.server import Limits

BANK = f"{SHARED_PREFIX}vblora_vector_bank"
LOGITS = ("vblora_logits_A", "vblora_logits_B")
INDICES, WEIGHTS = "_topk_indices", "_topk_weights"
# It is 2 to 6 in practice, and takes time for each.
MAX_TOPK = 256
# The smallest that holds the number of vectors.
TYPES_OF_INDICES = ("U8", "I16", "I32", "I64")


class VBLoRAConfig(ConvertedConfig):
    title: ClassVar[str] = "VB-LoRA"

    r: PositiveInteger = 4
    num_vectors: PositiveInteger = 256
    vector_length: PositiveInteger = 256
    topk: PositiveInteger = 2
    save_only_topk_weights: Flag = False

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        ends = (INDICES, WEIGHTS) if self.save_only_topk_weights else ("",)
        parts = [f"{logits}{end}" for logits in LOGITS for end in ends]
        modules = parts_by_module(tensors, architecture, parts, shared=(BANK,))
        self.check_ranks(dict.fromkeys(modules, self.r), architecture, limits)
        most = min(self.num_vectors, MAX_TOPK)
        if self.topk > most:
            raise wrong_field("topk", self.topk, f"at most {most:,}")
        size = (self.num_vectors, self.vector_length)
        bank = read_tensor(tensors, BANK, size, "(num_vectors, vector_length)").float()
        return {
            module: self._low_rank(tensors, names, bank, module, architecture.modules[module])
            for module, names in modules.items()
        }

    def _low_rank(
        self, tensors: Tensors, names: dict[str, str], bank: Any, module: str, shape: ModuleShape
    ) -> LowRank:
        if shape.in_features % self.vector_length or shape.out_features % self.vector_length:
            raise AdapterRejected(
                f"vector_length is {shown(self.vector_length)}, which does not divide the sizes of "
                f"module {shown(module)} ({shape.in_features:,} and {shape.out_features:,}), so "
                "that PEFT would not load it: train with another"
            )
        num_a = shape.in_features // self.vector_length
        num_b = shape.out_features // self.vector_length
        a = self._put_together(tensors, names, LOGITS[0], (self.r, num_a), bank)
        b = self._put_together(tensors, names, LOGITS[1], (num_b, self.r), bank)
        return LowRank(
            a.reshape(self.r, shape.in_features),
            b.transpose(1, 2).reshape(shape.out_features, self.r),
        )

    def _put_together(
        self, tensors: Tensors, names: dict[str, str], logits: str, size: tuple[int, int], bank: Any
    ) -> Any:
        """A tensor of that size, of vectors."""
        if self.save_only_topk_weights:
            weights, indices = self._read_topk(tensors, names, logits, size)
        else:
            meaning = "tiles and ranks, and num_vectors"
            read = read_tensor(tensors, names[logits], (*size, self.num_vectors), meaning)
            top, indices = read.float().topk(self.topk, dim=-1)
            weights = top.softmax(dim=-1)
        # One at a time: all at once would be larger than the file by as much as a vector is long.
        return sum(weights[..., [k]] * bank[indices[..., k]] for k in range(self.topk))

    def _read_topk(
        self, tensors: Tensors, names: dict[str, str], logits: str, size: tuple[int, int]
    ) -> tuple[Any, Any]:
        import torch

        name = names[f"{logits}{INDICES}"]
        meaning = "tiles and ranks, and topk"
        indices = read_tensor(tensors, name, (*size, self.topk), meaning, TYPES_OF_INDICES).long()
        if indices.min() < 0 or indices.max() >= self.num_vectors or _repeats(indices):
            raise AdapterRejected(
                f"tensor {shown(name)} does not name {self.topk} of {self.num_vectors:,} vectors: "
                "save the adapter again"
            )
        name = names[f"{logits}{WEIGHTS}"]
        meaning = "tiles and ranks, and topk - 1"
        most = read_tensor(tensors, name, (*size, self.topk - 1), meaning).float()
        weights = torch.cat([most, 1 - most.sum(-1, keepdim=True)], dim=-1)
        if weights.min() < 0:
            raise AdapterRejected(
                f"tensor {shown(name)} has weights that are negative, or above 1 together, which "
                "PEFT makes NaN of: save with save_only_topk_weights=False"
            )
        return weights, indices


def _repeats(indices: Any) -> bool:
    in_order = indices.sort(dim=-1).values
    return bool((in_order[..., 1:] == in_order[..., :-1]).any())
