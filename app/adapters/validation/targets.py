"""Which modules a LoRA's configuration names, by PEFT's rule (its `check_target_module_exists`)."""

from collections.abc import Callable, Collection, Iterable

from app.adapters.validation.config import LoRAConfig
from app.adapters.validation.patterns import compiled
from app.engine.protocol import Architecture

ALL_LINEAR = "all-linear"
# The name of a layer's number where layers_pattern does not say which: the first one.
ANY_LAYER = r".*?\.[^.]*\.(\d+)\..*"

Named = Callable[[str], bool]


def named_modules(config: LoRAConfig, architecture: Architecture) -> Named | None:
    """Whether a module is named; None where `target_modules` is left to PEFT.

    Raises:
        CannotRun: that depends on a pattern that cannot be run in linear time.
    """
    if config.target_modules is None:
        return None
    is_target = _targets(config.target_modules, architecture)
    is_excluded = _selected(config.exclude_modules) if config.exclude_modules else _never
    # PEFT goes by layers only where target_modules is a list.
    is_in_layers = _always if isinstance(config.target_modules, str) else _layers(config)
    return lambda module: is_target(module) and not is_excluded(module) and is_in_layers(module)


def last_parts(module: str) -> set[str]:
    """What a list can name a module by."""
    parts = module.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


def _targets(targets: str | Collection[str], architecture: Architecture) -> Named:
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return lambda module: (
            architecture.modules[module].kind == "linear" and module.rpartition(".")[2] != "lm_head"
        )
    return _selected(targets)


def _selected(names: str | Iterable[str]) -> Named:
    if isinstance(names, str):
        pattern = compiled(names)
        return lambda module: pattern.fullmatch(module) is not None
    listed = set(names)
    return lambda module: not listed.isdisjoint(last_parts(module))


def _layers(config: LoRAConfig) -> Named:
    layers = config.layers_to_transform
    if layers is None or layers == []:
        return _always
    numbers = {layers} if isinstance(layers, int) else set(layers)
    names = config.layers_pattern or []
    patterns = [
        compiled(rf"(?:.*?\.)??(?:{name})\.(\d+)\..*")
        for name in ([names] if isinstance(names, str) else names)
    ] or [compiled(ANY_LAYER)]

    def is_in_layers(module: str) -> bool:
        match = next(filter(None, (pattern.fullmatch(module) for pattern in patterns)), None)
        return match is not None and int(match.groups()[-1]) in numbers

    return is_in_layers


def _always(module: str) -> bool:
    return True


def _never(module: str) -> bool:
    return False
