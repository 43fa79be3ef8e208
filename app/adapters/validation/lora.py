"""A LoRA: which modules it adapts, by what rank, and that each has its two tensors."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from app.adapters.archive import shown
from app.adapters.validation.by_module import by_module, by_module_if_it_runs
from app.adapters.validation.checked import Checked, lora_facts, made_of
from app.adapters.validation.config import LoRAConfig
from app.adapters.validation.fused import as_trained, in_base_modules, magnitudes_in_base_modules
from app.adapters.validation.low_rank import (
    LowRank,
    LowRanks,
    added,
    check_loras_run,
    check_module,
    check_rank,
    check_size,
)
from app.adapters.validation.names import MAGNITUDE, PREFIX, Tensors, names_of
from app.adapters.validation.patterns import CannotRun
from app.adapters.validation.served import pattern_for_each
from app.adapters.validation.targets import check_targets, last_names, untrained_modules
from app.adapters.validation.tensors import read_tensor
from app.adapters.validation.trained_tokens import tokens_beside_a_lora
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits

# Of a mixture: the engine keeps them together.
EXPERTS = ".experts."
# By its number. The head lies outside of them.
IN_A_LAYER = re.compile(r"\.\d+\.")
MAX_FP32 = 3.4028234e38
TENSOR = re.compile(r"base_model\.model\.(.*)\.lora_(?:[AB]\.weight|(embedding)_[AB])")


def check_lora(
    config: LoRAConfig, tensors: Tensors, architecture: Architecture, limits: Limits
) -> Checked:
    """What the tensors hold decides which modules are adapted, and by what rank.

    Raises:
        AdapterRejected: PEFT would not load it, or not as it would be served.
    """
    check_loras_run(architecture)
    trained_on = as_trained(tensors.names, architecture)
    magnitudes = _magnitudes(config, tensors)
    trained = tokens_beside_a_lora(config, tensors, architecture, limits)
    modules = _modules_of(tensors.without((*magnitudes, *trained.tensors)).names, trained_on)
    if not modules:
        raise AdapterRejected(f"{WEIGHTS_FILE} has no tensors of a LoRA: train it before saving it")
    ranks = _ranks(config, tensors, modules, trained_on)
    check_rank(max(ranks.values()), limits)
    default = config.lora_alpha
    alphas = by_module("alpha_pattern", config.alpha_pattern, modules, default, trained_on)
    scalings = {
        module: alphas[module] / (math.sqrt(rank) if config.use_rslora else rank)
        for module, rank in ranks.items()
    }
    for module, rank in ranks.items():
        _check_pair(tensors, module, trained_on.modules[module], rank, scalings[module])
        if config.use_dora:
            _check_magnitude(tensors, module, trained_on)
    notes = (
        *(f"{name} is not there: it is 8, as PEFT has it" for name in _absent_numbers(config)),
        *trained.notes,
        *check_targets(config, modules, trained_on),
        *untrained_modules(config),
        *_untrained_biases(config),
    )
    if trained_on is architecture and not trained.tensors:
        return Checked(lora_facts(ranks), notes, _config_changes(config, ranks, alphas))
    own = _low_ranks(tensors, scalings, trained_on)
    low_ranks, form_notes = in_base_modules(own, architecture, limits)
    low_ranks = added(low_ranks, trained.low_ranks, limits)
    check_size({m: each.rank for m, each in low_ranks.items()}, architecture, limits)
    made = made_of(low_ranks, (*form_notes, *notes), architecture, trained.token_ids)
    if not magnitudes:
        return made
    return made.with_weights(_magnitudes_served(tensors, modules, architecture))


def _magnitudes(config: LoRAConfig, tensors: Tensors) -> list[str]:
    """The names of DoRA's tensors beside those of a LoRA."""
    magnitudes = [name for name in tensors.names if name.endswith(f".{MAGNITUDE}")]
    if magnitudes and not config.use_dora:
        raise AdapterRejected(
            f"there are magnitudes, as {shown(magnitudes[0])}, and use_dora is false, so that PEFT "
            f"would leave them out: set it to true in {CONFIG_FILE}, or save the adapter again"
        )
    return magnitudes


def _magnitudes_served(
    tensors: Tensors, modules: Iterable[str], architecture: Architecture
) -> dict[str, Any]:
    own = {module: tensors.get_tensor(_magnitude_of(module)) for module in modules}
    served = magnitudes_in_base_modules(own, architecture)
    return {_magnitude_of(module): magnitude for module, magnitude in served.items()}


def _magnitude_of(module: str) -> str:
    return f"{PREFIX}{module}.{MAGNITUDE}"


def _low_ranks(
    tensors: Tensors, scalings: Mapping[str, float], architecture: Architecture
) -> LowRanks:
    """What tensors that are right add, scaled."""
    low_ranks = {}
    for module, scaling in scalings.items():
        half_a, half_b = names_of(module, architecture.modules[module])
        a, b = tensors.get_tensor(half_a).float(), tensors.get_tensor(half_b).float()
        low_ranks[module] = LowRank(a, b * scaling)
    return low_ranks


def _ranks(
    config: LoRAConfig, tensors: Tensors, modules: Collection[str], architecture: Architecture
) -> dict[str, int]:
    """The rank of every module. The shapes tell it where a key of rank_pattern cannot be run."""
    try:
        return by_module_if_it_runs(
            "rank_pattern", config.rank_pattern, modules, config.r, architecture
        )
    except CannotRun:
        return {module: _rank_in_shape(config, tensors, module, architecture) for module in modules}


def _rank_in_shape(
    config: LoRAConfig, tensors: Tensors, module: str, architecture: Architecture
) -> int:
    """The rank that lora_A has, if the configuration has it for any module."""
    half_a, _ = names_of(module, architecture.modules[module])
    shape = tuple(tensors.get_slice(half_a).get_shape())
    declared = {config.r, *config.rank_pattern.values()}
    return shape[0] if shape and shape[0] in declared else config.r


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
    if config.use_dora:
        changes["use_dora"] = False
    return changes


def _absent_numbers(config: LoRAConfig) -> list[str]:
    """Those that the engine, unlike PEFT, does not know without being told."""
    return [name for name in ("r", "lora_alpha") if name not in config.model_fields_set]


def _modules_of(names: Iterable[str], architecture: Architecture) -> list[str]:
    """The modules that the tensors with these names are for, each of which has both halves."""
    modules = {name: _module_of(name, architecture) for name in names}
    for module in modules.values():
        for half, name in zip("AB", names_of(module, architecture.modules[module]), strict=True):
            if name not in modules:
                raise AdapterRejected(
                    f"module {shown(module)} has no lora_{half}: save the adapter again"
                )
    return list(dict.fromkeys(modules.values()))


def _module_of(name: str, architecture: Architecture) -> str:
    match = TENSOR.fullmatch(name)
    if match is None:
        raise _not_of_a_lora(name)
    check_module(name, match[1], "embedding" if match[2] else "linear", architecture)
    return match[1]


def _not_of_a_lora(name: str) -> AdapterRejected:
    return AdapterRejected(
        f"tensor {shown(name)} is not of a LoRA, whose tensors are called {PREFIX}MODULE."
        "lora_A.weight and lora_B.weight: save it with PEFT's save_pretrained"
    )


def _untrained_biases(config: LoRAConfig) -> Iterator[str]:
    if config.bias not in (None, "none"):
        yield f"bias is {config.bias!r}, and the biases are those of the base model"


def _check_pair(weights: Any, module: str, shape: ModuleShape, rank: int, scaling: float) -> None:
    half_a, half_b = names_of(module, shape)
    read_tensor(weights, half_a, (rank, shape.in_features), "(rank, in_features)")
    tensor = read_tensor(weights, half_b, (shape.out_features, rank), "(out_features, rank)")
    # The engine multiplies B by this when it loads it.
    if not float(tensor.abs().max()) * abs(scaling) <= MAX_FP32:
        raise AdapterRejected(
            f"tensor {shown(half_b)} is infinite once it is scaled by lora_alpha / rank: lower "
            "lora_alpha"
        )


def _check_magnitude(tensors: Tensors, module: str, architecture: Architecture) -> None:
    shape = architecture.modules[module]
    if shape.kind == "embedding" or not IN_A_LAYER.search(module) or EXPERTS in module:
        raise AdapterRejected(
            f"DoRA runs on the linear modules of layers, and {shown(module)} is none of them: "
            "train without it in target_modules, or with use_dora=False"
        )
    name = _magnitude_of(module)
    if name not in tensors.names:
        raise AdapterRejected(f"module {shown(module)} has no {MAGNITUDE}: save the adapter again")
    read_tensor(tensors, name, (shape.out_features,), "(out_features,)")
