"""Modules that are several in one model and one in another: attention's q, k and v, and an MLP's.

One model can be published in both forms. The rows of a fused weight are those of its parts, one
part below the other, so that what is added to the one says what is added to the others. To a part:
the fused module's `a`, and the part's rows of `b`. To the fused module: the sum of what each part
adds to its own rows, of which the ranks add up.

It is not so where the rows of a fused weight are interleaved by head: such modules go by other
names than these, or are not in `Architecture.fused`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.adapters.archive import shown
from app.adapters.validation.low_rank import LowRank, LowRanks
from app.adapters.validation.targets import last_names
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.server import Limits

QKV = ("q_proj", "k_proj", "v_proj")
# By the last name of a fused module, those of its parts in the order of their rows.
PARTS = {"qkv_proj": QKV, "W_pack": QKV, "gate_up_proj": ("gate_proj", "up_proj")}
EVERY_ROW = slice(None)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where rows of an adapter's module lie: which of `theirs` are which of `ours` in `module`."""

    module: str
    theirs: slice
    ours: slice


def as_trained(names: Iterable[str], architecture: Architecture) -> Architecture:
    """The base model with its modules in the form that tensors of these names are for.

    Where that is its own form, it is `architecture` itself.
    """
    words = {word for name in names for word in name.split(".")}
    modules: dict[str, ModuleShape] = {}
    unadapted = set(architecture.unadapted)
    for module, shape in architecture.modules.items():
        others = _parts(module, words, architecture) or _whole(module, words, architecture)
        modules |= others or {module: shape}
        if module in architecture.unadapted:
            unadapted.update(others)
    if modules.keys() == architecture.modules.keys():
        return architecture
    return replace(architecture, modules=modules, unadapted=frozenset(unadapted))


def in_base_modules(
    low_ranks: LowRanks, architecture: Architecture, limits: Limits
) -> tuple[LowRanks, tuple[str, ...]]:
    """What is added to the base model's own modules, and a note if they have another form.

    Raises:
        AdapterRejected: the ranks of parts add up to more than the limit.
    """
    others = [module for module in low_ranks if module not in architecture.modules]
    if not others:
        return low_ranks, ()
    found: dict[str, LowRank] = {}
    for module, low_rank in low_ranks.items():
        for place in _places(module, architecture):
            b = low_rank.b.new_zeros(architecture.modules[place.module].out_features, low_rank.rank)
            b[place.ours] = low_rank.b[place.theirs]
            # Tensors of a file share no memory.
            part = LowRank(low_rank.a.clone(), b)
            found[place.module] = found[place.module] + part if place.module in found else part
    theirs = ", ".join(map(shown, last_names(others)))
    ours = ", ".join(map(shown, last_names(found.keys() - low_ranks.keys())))
    rank = max(low_rank.rank for low_rank in found.values())
    if rank > limits.max_lora_rank:
        raise AdapterRejected(
            f"the adapter's modules {theirs} are {ours} in the base model, where their ranks add "
            f"up to {rank}, and the limit is {limits.max_lora_rank}: train with a lower r, or "
            "start the server with a higher --max-lora-rank"
        )
    note = (
        f"the adapter's modules {theirs} are {ours} in the base model: served as the LoRA of rank "
        f"{rank} that it is equal to there"
    )
    return found, (note,)


def magnitudes_in_base_modules(
    magnitudes: Mapping[str, Any], architecture: Architecture
) -> dict[str, Any]:
    """DoRA's magnitudes of the base model's own modules, from those of the adapter's.

    Raises:
        AdapterRejected: of a fused module, a part has none: it would have to stay as it is.
    """
    found: dict[str, Any] = {}
    for module, magnitude in magnitudes.items():
        for place in _places(module, architecture):
            width = architecture.modules[place.module].out_features
            whole = found.setdefault(place.module, magnitude.new_full((width,), math.nan))
            whole[place.ours] = magnitude[place.theirs]
    for module, whole in found.items():
        if whole.isnan().any():
            raise AdapterRejected(
                f"the base model has {shown(module)} in one, and the adapter, a DoRA, changes some "
                "of its parts alone: train all of them, or with use_dora=False"
            )
    return found


def _parts(module: str, words: set[str], architecture: Architecture) -> dict[str, ModuleShape]:
    """Of a fused module, if the adapter has any."""
    widths = architecture.fused.get(module, {})
    if words.isdisjoint(widths):
        return {}
    in_features = architecture.modules[module].in_features
    parent = module.rpartition(".")[0]
    return {
        f"{parent}.{part}": ModuleShape("linear", in_features, width)
        for part, width in widths.items()
    }


def _whole(module: str, words: set[str], architecture: Architecture) -> dict[str, ModuleShape]:
    """What a part is fused to, if the adapter has that."""
    parent, _, last = module.rpartition(".")
    for fused, parts in PARTS.items():
        shapes = [architecture.modules.get(f"{parent}.{part}") for part in parts]
        linear = [shape for shape in shapes if shape is not None and shape.kind == "linear"]
        if last in parts and fused in words and len(linear) == len(parts):
            width = sum(shape.out_features for shape in linear)
            return {f"{parent}.{fused}": ModuleShape("linear", linear[0].in_features, width)}
    return {}


def _places(module: str, architecture: Architecture) -> Iterator[_Place]:
    parent, _, last = module.rpartition(".")
    if module in architecture.modules:
        yield _Place(module, EVERY_ROW, EVERY_ROW)
    elif last in PARTS:
        first = 0
        for part in (f"{parent}.{part}" for part in PARTS[last]):
            end = first + architecture.modules[part].out_features
            yield _Place(part, slice(first, end), EVERY_ROW)
            first = end
    else:
        yield _in_whole(parent, last, architecture)


def _in_whole(parent: str, part: str, architecture: Architecture) -> _Place:
    for fused, widths in architecture.fused.items():
        if fused.rpartition(".")[0] == parent and part in widths:
            first = sum(list(widths.values())[: list(widths).index(part)])
            return _Place(fused, EVERY_ROW, slice(first, first + widths[part]))
    raise AssertionError(f"{parent}.{part} is in no fused module")
