"""MiSS: the same block of rows is added to every r columns of W^T (https://arxiv.org/abs/2409.15371).

By PEFT's code (its tuners/miss/layer.py), W[o, i] + block[i mod r, o]: the last columns get as many
of the block's rows as there are. `mini` has a block of mini_r columns, which stand beside one
another until there are enough.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from app.adapters.archive import shown
from app.adapters.validation.config import PositiveInteger, wrong_field
from app.adapters.validation.conversion.base import ConvertedConfig, parts_by_module
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.names import Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE
from softserve.schema.server import Limits

MINI = "mini"


def _check_init(init: Any) -> Any:
    if init == "bat":
        raise AdapterRejected(
            f"{CONFIG_FILE} has init_weights 'bat', whose change depends on the base model's "
            "weights and is of full rank: train with init_weights=True or 'mini'"
        )
    if not isinstance(init, bool) and init not in (None, MINI):
        raise wrong_field("init_weights", init, "true, false or 'mini'")
    return init


class MiSSConfig(ConvertedConfig):
    title: ClassVar[str] = "MiSS"
    block: ClassVar[str] = "miss_block"

    init_weights: Annotated[bool | Literal["mini"] | None, BeforeValidator(_check_init)] = True
    r: PositiveInteger = 64
    mini_r: PositiveInteger = 1

    def low_ranks(self, tensors: Tensors, architecture: Architecture, limits: Limits) -> LowRanks:
        modules = parts_by_module(tensors, architecture, [self.block])
        shapes = {module: self._shape(module, architecture.modules[module]) for module in modules}
        ranks = {module: min(shape) for module, shape in shapes.items()}
        self.check_ranks(ranks, architecture, limits)
        return {
            module: _low_rank(
                read_tensor(tensors, names[self.block], shapes[module], "what r and mini_r say"),
                architecture.modules[module],
            )
            for module, names in modules.items()
        }

    def _shape(self, module: str, shape: ModuleShape) -> tuple[int, int]:
        """Of a module's block, whose sides are the rank in the one direction and in the other."""
        if self.r > shape.in_features:
            raise AdapterRejected(
                f"r is {shown(self.r)}, and module {shown(module)} has {shape.in_features:,} "
                "inputs, so that PEFT would not load it: train with a lower r"
            )
        if self.init_weights != MINI:
            return self.r, shape.out_features
        if shape.out_features % self.mini_r:
            raise AdapterRejected(
                f"mini_r is {shown(self.mini_r)}, which does not divide the {shape.out_features:,} "
                f"outputs of module {shown(module)}, so that PEFT would not load it: train with "
                "another mini_r"
            )
        return self.r, self.mini_r


class BoneConfig(MiSSConfig):
    """What older versions of PEFT called it (their tuners/bone/layer.py), without `mini`."""

    title: ClassVar[str] = "Bone"
    block: ClassVar[str] = "bone_block"


def _low_rank(block: Any, shape: ModuleShape) -> LowRank:
    import torch

    block = block.float()
    r, width = block.shape
    # What one of the sides repeats is the other's: the shorter is the rank.
    a, b = (torch.eye(r), block) if r <= width else (block.T, torch.eye(width))
    return LowRank(_repeated(a, shape.in_features), _repeated(b, shape.out_features).T)


def _repeated(columns: Any, num_columns: int) -> Any:
    """The columns beside one another until there are as many."""
    num_times = -(-num_columns // columns.shape[1])
    return columns.repeat(1, num_times)[:, :num_columns]
