"""A LoRA: which modules it adapts, by what rank, and that each has its two tensors."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from app.adapters.archive import shown
from app.adapters.validation.config import LoRAConfig
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.server import Limits

T = TypeVar("T", int, float)

MAX_FP32 = 3.4028234e38
PREFIX = "base_model.model."
TENSOR = re.compile(r"base_model\.model\.(.*)\.lora_(?:[AB]\.weight|(embedding)_[AB])")
HALVES = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}
A_OR_AN = {"linear": "a linear", "embedding": "an embedding"}


def check_lora(
    config: LoRAConfig, weights: Any, architecture: Architecture, limits: Limits
) -> dict[str, int]:
    """The rank of every module that the LoRA adapts. Raises AdapterRejected."""
    if architecture.no_loras is not None:
        raise AdapterRejected(f"no LoRA can be added: {architecture.no_loras}")
    _check_ranks(config, architecture, limits)
    modules = _modules_of(weights.keys(), architecture)
    ranks = _by_module(config.rank_pattern, modules, config.r)
    _check_targets(config, ranks, architecture)
    alphas = _by_module(config.alpha_pattern, modules, config.lora_alpha)
    for module, rank in ranks.items():
        scaling = alphas[module] / (math.sqrt(rank) if config.use_rslora else rank)
        _check_pair(weights, module, architecture.modules[module], rank, scaling)
    return ranks


def _check_ranks(config: LoRAConfig, architecture: Architecture, limits: Limits) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        num_keys, num_modules = len(getattr(config, field)), len(architecture.modules)
        if num_keys > num_modules:
            raise AdapterRejected(
                f"{field} has {num_keys:,} keys, and the base model {num_modules:,} modules: leave "
                "out those that match nothing"
            )
    rank = max([config.r, *config.rank_pattern.values()])
    if rank > limits.max_lora_rank:
        raise AdapterRejected(
            f"the LoRA has rank {shown(rank)} and the limit is {limits.max_lora_rank}: train with "
            "a lower r, or start the server with a higher --max-lora-rank"
        )


def _by_module(patterns: Mapping[str, T], modules: Iterable[str], default: T) -> dict[str, T]:
    """The value of the first pattern that matches, as PEFT and the engine match it: at the end of
    a module's name, after a dot."""
    matchers = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in patterns.items()]
    return {
        module: next((value for matcher, value in matchers if matcher.match(module)), default)
        for module in modules
    }


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
        raise _not_of_a_lora(name, architecture)
    module, kind = match[1], match[2] or "linear"
    shape = architecture.modules.get(module)
    if shape is None:
        raise AdapterRejected(
            f"tensor {shown(name)} is for a module that the base model does not have: check which "
            "base model the adapter was trained on"
        )
    if shape.kind != kind:
        raise AdapterRejected(
            f"tensor {shown(name)} is for {A_OR_AN[kind]} module, and in the base model it is "
            f"{A_OR_AN[shape.kind]} one: check which base model it was trained on"
        )
    return module


def _not_of_a_lora(name: str, architecture: Architecture) -> AdapterRejected:
    module = name.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    is_embedding = module.rpartition(".")[2] in ("embed_tokens", "lm_head")
    if name.endswith(".weight") and (module in architecture.modules or is_embedding):
        return AdapterRejected(
            f"tensor {shown(name)} is a copy of the base model's own weights: save the adapter "
            "with save_embedding_layers=False"
        )
    return AdapterRejected(
        f"tensor {shown(name)} is not of a LoRA, whose tensors are called {PREFIX}MODULE."
        "lora_A.weight and lora_B.weight: save it with PEFT's save_pretrained"
    )


def _check_targets(config: LoRAConfig, found: Collection[str], architecture: Architecture) -> None:
    """`target_modules` and the tensors name the same modules, by PEFT's rule: the last parts."""
    if isinstance(config.target_modules, str):
        return
    targets = set(config.target_modules)
    matched = set().union(*map(_last_parts, found))
    for target in config.target_modules:
        if target not in matched:
            raise AdapterRejected(
                f"target_modules names {shown(target)}, for which there are no tensors: save the "
                "adapter again, or leave it out of target_modules"
            )
    for module in found:
        if targets.isdisjoint(_last_parts(module)):
            raise AdapterRejected(
                f"there are tensors for module {shown(module)}, which target_modules does not "
                "name: save the adapter again"
            )
    for module in () if config.is_partial else architecture.modules:
        if module not in found and not targets.isdisjoint(_last_parts(module)):
            raise AdapterRejected(
                f"there are no tensors for module {shown(module)}, which target_modules names: "
                "save the adapter again"
            )


def _last_parts(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


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
