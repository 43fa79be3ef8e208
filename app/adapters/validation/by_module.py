"""What a configuration has for one module and not for another: `rank_pattern`, `alpha_pattern`."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from app.adapters.validation.patterns import CannotRun, key_pattern
from app.engine.protocol import Architecture
from app.errors import AdapterRejected

T = TypeVar("T", int, float)


def by_module(
    field: str,
    patterns: Mapping[str, T],
    modules: Collection[str],
    default: T,
    architecture: Architecture,
) -> dict[str, T]:
    """The value of the first key that matches, as PEFT matches it. Raises AdapterRejected."""
    try:
        return by_module_if_it_runs(field, patterns, modules, default, architecture)
    except CannotRun as reason:
        raise AdapterRejected(
            f"{field} has a key that cannot be run in linear time ({reason}): write the "
            "names of modules, their last parts, or a pattern without look-around and "
            "back-references"
        ) from reason


def by_module_if_it_runs(
    field: str,
    patterns: Mapping[str, T],
    modules: Collection[str],
    default: T,
    architecture: Architecture,
) -> dict[str, T]:
    """The same. Raises CannotRun where a key cannot be run, and AdapterRejected."""
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
