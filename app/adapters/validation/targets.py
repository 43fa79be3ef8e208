"""Which modules a LoRA's configuration names, by PEFT's rule (its `check_target_module_exists`)."""

from collections.abc import Callable, Collection, Iterable, Iterator

from app.adapters.archive import shown
from app.adapters.validation.config import TargetedConfig
from app.adapters.validation.patterns import CannotRun, compiled
from app.engine.protocol import Architecture
from app.errors import AdapterRejected

ALL_LINEAR = "all-linear"
MAX_NAMES_SHOWN = 5
# The name of a layer's number where layers_pattern does not say which: the first one.
ANY_LAYER = r".*?\.[^.]*\.(\d+)\..*"

Named = Callable[[str], bool]


def named_modules(config: TargetedConfig, architecture: Architecture) -> Named | None:
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


def check_targets(
    config: TargetedConfig, found: Collection[str], architecture: Architecture
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


def untrained_modules(config: TargetedConfig) -> Iterator[str]:
    """A note on parts of the base model that the training could have changed, and has not."""
    if config.modules_to_save:
        some = ", ".join(map(shown, config.modules_to_save[:MAX_NAMES_SHOWN]))
        yield f"modules_to_save names {some}, which are as in the base model"


def _absent(config: TargetedConfig, architecture: Architecture) -> Iterator[str]:
    """Names in `target_modules` that no module of the base model has."""
    if isinstance(config.target_modules, str):
        return
    there = set().union(*map(last_parts, architecture.modules))
    absent = list(dict.fromkeys(t for t in config.target_modules or () if t not in there))
    if absent:
        some = ", ".join(map(shown, absent[:MAX_NAMES_SHOWN]))
        yield f"target_modules names {some}, which the base model does not have"


def last_names(modules: Iterable[str]) -> list[str]:
    return sorted({module.rpartition(".")[2] for module in modules})


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


def _layers(config: TargetedConfig) -> Named:
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
