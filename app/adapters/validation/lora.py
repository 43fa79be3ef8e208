"""A LoRA: which modules it adapts, by what rank, and that each has its two tensors."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from app.adapters.archive import shown
from app.adapters.validation.config import LoRAConfig
from app.adapters.validation.names import PREFIX, Tensors
from app.adapters.validation.patterns import CannotRun, key_pattern
from app.adapters.validation.served import pattern_for_each
from app.adapters.validation.targets import last_parts, named_modules
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.adapters import WEIGHTS_FILE
from softserve.schema.server import Limits

T = TypeVar("T", int, float)

MAX_FP32 = 3.4028234e38
MAX_NAMES_SHOWN = 5
TENSOR = re.compile(r"base_model\.model\.(.*)\.lora_(?:[AB]\.weight|(embedding)_[AB])")
HALVES = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}
A_OR_AN = {"linear": "a linear", "embedding": "an embedding"}


@dataclass(frozen=True, slots=True)
class CheckedLoRA:
    """The rank of every module that it adapts, and what is noted of it.

    `config_changes` has the fields in which it is served with other values than it was sent with.
    """

    ranks: Mapping[str, int]
    notes: tuple[str, ...]
    config_changes: Mapping[str, Any]


def check_lora(
    config: LoRAConfig, tensors: Tensors, architecture: Architecture, limits: Limits
) -> CheckedLoRA:
    """What the tensors hold decides which modules are adapted, and by what rank.

    Raises:
        AdapterRejected: PEFT would not load it, or not as it would be served.
    """
    if architecture.no_loras is not None:
        raise AdapterRejected(f"no LoRA can be added: {architecture.no_loras}")
    modules = _modules_of(tensors.names, architecture)
    if not modules:
        raise AdapterRejected(f"{WEIGHTS_FILE} has no tensors of a LoRA: train it before saving it")
    ranks = _ranks(config, tensors, modules, architecture)
    _check_rank(max(ranks.values()), limits)
    alphas = _alphas(config, modules, architecture)
    for module, rank in ranks.items():
        scaling = alphas[module] / (math.sqrt(rank) if config.use_rslora else rank)
        _check_pair(tensors, module, architecture.modules[module], rank, scaling)
    notes = (
        *(f"{name} is not there: it is 8, as PEFT has it" for name in _absent_numbers(config)),
        *_check_targets(config, modules, architecture),
        *_untrained(config),
    )
    return CheckedLoRA(ranks, notes, _config_changes(config, ranks, alphas))


def _ranks(
    config: LoRAConfig, tensors: Tensors, modules: Collection[str], architecture: Architecture
) -> dict[str, int]:
    """The rank of every module. The shapes tell it where a key of rank_pattern cannot be run."""
    try:
        return _by_module("rank_pattern", config.rank_pattern, modules, config.r, architecture)
    except CannotRun:
        return {module: _rank_in_shape(config, tensors, module, architecture) for module in modules}


def _rank_in_shape(
    config: LoRAConfig, tensors: Tensors, module: str, architecture: Architecture
) -> int:
    """The rank that lora_A has, if the configuration has it for any module."""
    half_a, _ = _names_of(module, architecture.modules[module])
    shape = tuple(tensors.get_slice(half_a).get_shape())
    declared = {config.r, *config.rank_pattern.values()}
    return shape[0] if shape and shape[0] in declared else config.r


def _check_rank(rank: int, limits: Limits) -> None:
    if rank > limits.max_lora_rank:
        raise AdapterRejected(
            f"the LoRA has rank {shown(rank)} and the limit is {limits.max_lora_rank}: train with "
            "a lower r, or start the server with a higher --max-lora-rank"
        )


def _alphas(
    config: LoRAConfig, modules: Collection[str], architecture: Architecture
) -> dict[str, float]:
    default = config.lora_alpha
    try:
        return _by_module("alpha_pattern", config.alpha_pattern, modules, default, architecture)
    except CannotRun as reason:
        raise AdapterRejected(
            f"alpha_pattern has a key that cannot be run in linear time ({reason}): write the "
            "names of modules, their last parts, or a pattern without look-around and "
            "back-references"
        ) from reason


def _by_module(
    field: str,
    patterns: Mapping[str, T],
    modules: Collection[str],
    default: T,
    architecture: Architecture,
) -> dict[str, T]:
    """The value of the first key that matches, as PEFT matches it. Raises CannotRun."""
    num_keys, num_modules = len(patterns), len(architecture.modules)
    if num_keys > num_modules:
        raise AdapterRejected(
            f"{field} has {num_keys:,} keys, and the base model {num_modules:,} modules: leave out "
            "those that match nothing"
        )
    keys = [(key_pattern(key), value) for key, value in patterns.items()]
    return {
        module: next((value for key, value in keys if key.fullmatch(module)), default)
        for module in modules
    }


def _config_changes(
    config: LoRAConfig, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> dict[str, Any]:
    """What the engine is to go by, in place of patterns that it would run, and without limits."""
    changes: dict[str, Any] = {name: getattr(config, name) for name in _absent_numbers(config)}
    if config.rank_pattern or config.alpha_pattern or not config.target_modules:
        rank = max(ranks.values())
        changes |= {
            "r": rank,
            "rank_pattern": pattern_for_each(ranks, rank),
            "alpha_pattern": pattern_for_each(alphas, config.lora_alpha),
            "target_modules": config.target_modules or last_names(ranks),
        }
    # The engine refuses the mere mention.
    if config.modules_to_save:
        changes["modules_to_save"] = None
    return changes


def _absent_numbers(config: LoRAConfig) -> list[str]:
    """Those that the engine, unlike PEFT, does not know without being told."""
    return [name for name in ("r", "lora_alpha") if name not in config.model_fields_set]


def last_names(modules: Iterable[str]) -> list[str]:
    return sorted({module.rpartition(".")[2] for module in modules})


def _modules_of(names: Iterable[str], architecture: Architecture) -> list[str]:
    """The modules that the tensors with these names are for, each of which has both halves."""
    modules = {name: _module_of(name, architecture) for name in names}
    for module in modules.values():
        for half, name in zip("AB", _names_of(module, architecture.modules[module]), strict=True):
            if name not in modules:
                raise AdapterRejected(
                    f"module {shown(module)} has no lora_{half}: save the adapter again"
                )
    return list(dict.fromkeys(modules.values()))


def _names_of(module: str, shape: ModuleShape) -> list[str]:
    return [f"{PREFIX}{module}.{half}" for half in HALVES[shape.kind]]


def _module_of(name: str, architecture: Architecture) -> str:
    match = TENSOR.fullmatch(name)
    if match is None:
        raise _not_of_a_lora(name)
    module, kind = match[1], match[2] or "linear"
    shape = architecture.modules.get(module)
    if shape is None:
        raise AdapterRejected(
            f"tensor {shown(name)} is for a module that the base model does not have: check which "
            "base model the adapter was trained on"
        )
    if module in architecture.unadapted:
        raise AdapterRejected(
            f"tensor {shown(name)} is for module {shown(module)}, to which the engine adds no LoRA "
            "in this base model: train without it in target_modules"
        )
    if shape.kind != kind:
        raise AdapterRejected(
            f"tensor {shown(name)} is for {A_OR_AN[kind]} module, and in the base model it is "
            f"{A_OR_AN[shape.kind]} one: check which base model it was trained on"
        )
    return module


def _not_of_a_lora(name: str) -> AdapterRejected:
    return AdapterRejected(
        f"tensor {shown(name)} is not of a LoRA, whose tensors are called {PREFIX}MODULE."
        "lora_A.weight and lora_B.weight: save it with PEFT's save_pretrained"
    )


def _check_targets(
    config: LoRAConfig, found: Collection[str], architecture: Architecture
) -> Iterator[str]:
    """Yield notes on modules that are named and have no tensors: PEFT leaves them as they are.

    Raises:
        AdapterRejected: there are tensors that PEFT would leave out.
    """
    try:
        is_named = named_modules(config, architecture)
    except CannotRun as reason:
        yield (
            f"a pattern of modules cannot be run in linear time ({reason}): the LoRA is served on "
            "the modules that it has tensors for"
        )
        return
    if is_named is None:
        return
    for module in found:
        if not is_named(module):
            raise AdapterRejected(
                f"there are tensors for module {shown(module)}, which target_modules does not "
                "name, so that PEFT would leave them out: name it there, or save the adapter again"
            )
    yield from _absent(config, architecture)
    absent = [name for name in architecture.modules if name not in found and is_named(name)]
    if absent:
        yield (
            f"target_modules names {len(absent):,} modules for which there are no tensors, as "
            f"{shown(absent[0])}: they are served as in the base model"
        )


def _untrained(config: LoRAConfig) -> Iterator[str]:
    """Notes on parts of the base model that the training could have changed, and has not."""
    if config.modules_to_save:
        some = ", ".join(map(shown, config.modules_to_save[:MAX_NAMES_SHOWN]))
        yield f"modules_to_save names {some}, which are as in the base model"
    if config.bias not in (None, "none"):
        yield f"bias is {config.bias!r}, and the biases are those of the base model"


def _absent(config: LoRAConfig, architecture: Architecture) -> Iterator[str]:
    """Names in `target_modules` that no module of the base model has."""
    if isinstance(config.target_modules, str):
        return
    there = set().union(*map(last_parts, architecture.modules))
    absent = list(dict.fromkeys(t for t in config.target_modules or () if t not in there))
    if absent:
        some = ", ".join(map(shown, absent[:MAX_NAMES_SHOWN]))
        yield f"target_modules names {some}, which the base model does not have"


def _check_pair(weights: Any, module: str, shape: ModuleShape, rank: int, scaling: float) -> None:
    half_a, half_b = _names_of(module, shape)
    read_tensor(weights, half_a, (rank, shape.in_features), "(rank, in_features)")
    tensor = read_tensor(weights, half_b, (shape.out_features, rank), "(out_features, rank)")
    # The engine multiplies B by this when it loads it.
    if not float(tensor.abs().max()) * abs(scaling) <= MAX_FP32:
        raise AdapterRejected(
            f"tensor {shown(half_b)} is infinite once it is scaled by lora_alpha / rank: lower "
            "lora_alpha"
        )
