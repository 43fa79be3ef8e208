"""What the commands of `softserve adapter` print.

On a terminal the tables fit its width; in a pipe an adapter, or a version, is one line.
"""

from collections.abc import Callable, Sequence

from rich import filesize
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli.canary import tried
from app.cli.console import stdout
from app.cli.name_tables import (
    Column,
    apart,
    grouped,
    is_retired,
    listing,
    mark,
    plain,
    rejection,
    table_of_names,
)
from softserve.schema.adapters import AdapterOut, VersionOut
from softserve.schema.checks import CheckedAdapter
from softserve.schema.versions import short

NO_ADAPTERS = (
    "There are no adapters: add one with `softserve adapter add NAME SOURCE`, or put its folder "
    "into the server's --adapter-dir."
)
RETIRED = (
    "{name} is not served: its folder is gone; put it back, or use `softserve adapter rollback "
    "{name}`"
)


def adapters_view(
    adapters: Sequence[AdapterOut], console: Console, *, with_retired: bool = False
) -> RenderableType:
    """The answer of `GET /adapters`: a row an adapter, then what to know of some of them."""
    if not adapters:
        return Text(NO_ADAPTERS)
    listed = listing(adapters, COLUMNS, console, with_retired=with_retired)
    return apart([*listed, *map(plain, _warnings(adapters))])


def print_adapter(adapter: AdapterOut, console: Console | None = None) -> None:
    """The answer of `GET /adapters/{name}`: what it is, and a row a version."""
    parts: list[RenderableType] = []
    if (version := shown_version(adapter)) is not None:
        modules = f" on {', '.join(version.target_modules)}" if version.target_modules else ""
        about = [
            f"{adapter.name}: {kind_of(version)}{modules}",
            f"base model: {version.base_model or 'not declared'}",
            *facts_of(version),
        ]
        parts = [Text("\n").join(map(plain, about)), _versions(adapter)]
    parts += map(plain, tried(adapter))
    if is_retired(adapter):
        parts.append(plain(RETIRED.format(name=adapter.name)))
    elif adapter.rejected is not None:
        parts.append(plain(f"{adapter.name} is {rejection(adapter)}"))
    (console or stdout()).print(apart(parts))


def shown_version(adapter: AdapterOut) -> VersionOut | None:
    """The live version, of an adapter that is not served the newest."""
    live = (version for version in adapter.versions if version.live)
    return next(live, adapter.versions[0] if adapter.versions else None)


def facts_of(version: VersionOut | None) -> list[str]:
    """What a version changes, and in what it is served otherwise than its files say."""
    if version is None:
        return []
    return [_effect(version), *(f"note: {note}" for note in version.notes)]


def kind_of(version: VersionOut | CheckedAdapter) -> str:
    """`LoRA, rank 8`, or `soft prompt, 20 virtual tokens`, with its tasks."""
    if version.virtual_tokens is None:
        return f"LoRA, rank {version.rank}"
    tokens = "virtual token" if version.virtual_tokens == 1 else "virtual tokens"
    return f"soft prompt, {version.virtual_tokens} {tokens}{_tasks(version)}"


def _tasks(version: VersionOut | CheckedAdapter) -> str:
    if version.task is not None:
        return f", made of task {version.task}"
    if version.tasks is None:
        return ""
    return f", tasks #0 to #{version.tasks - 1}" if version.tasks > 1 else ", task #0"


def _effect(version: VersionOut) -> str:
    if version.warning is not None:
        return f"warning: {version.warning}"
    if version.effect is None:
        return "effect: not measured; add it again to have it measured"
    return f"effect: a KL divergence of {_kl_divergence(version)} nats on the probe prompt"


def _kl_divergence(version: VersionOut) -> str:
    """Three digits of it, where it was measured."""
    return "" if version.effect is None else f"{version.effect.kl_divergence:.3g}"


def _versions(adapter: AdapterOut) -> Table:
    table = table_of_names()
    table.add_column("version", no_wrap=True)
    table.add_column("live", justify="center", no_wrap=True)
    table.add_column("loaded", justify="center", no_wrap=True)
    table.add_column("created")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("KL", justify="right", no_wrap=True)
    table.add_column("requests", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    for version in adapter.versions:
        table.add_row(
            short(version.version),
            mark(version.live),
            mark(version.loaded),
            f"{version.created_at.astimezone():%Y-%m-%d %H:%M}",
            _size(version),
            _kl_divergence(version),
            f"{version.requests:,}",
            plain(version.source),
        )
    return table


def _warnings(adapters: Sequence[AdapterOut]) -> list[str]:
    """What to look into before they are used."""

    def warning_of(adapter: AdapterOut) -> str | None:
        version = shown_version(adapter)
        return None if version is None else version.warning

    return grouped(adapters, warning_of, lambda whose, _, why: f"warning of {whose}: {why}")


def _size(version: VersionOut) -> str:
    return filesize.decimal(version.size_bytes)


def _of_version(
    cell: Callable[[VersionOut], RenderableType],
) -> Callable[[AdapterOut], RenderableType]:
    """What is told of an adapter's shown version, where it has one."""

    def of_adapter(adapter: AdapterOut) -> RenderableType:
        version = shown_version(adapter)
        return "" if version is None else cell(version)

    return of_adapter


def _short_kind(version: VersionOut) -> str:
    if version.virtual_tokens is None:
        return f"LoRA, rank {version.rank}"
    tasks = f", {version.tasks} tasks" if version.tasks and version.task is None else ""
    return f"prompt, {version.virtual_tokens} tokens{tasks}"


COLUMNS: list[Column[AdapterOut]] = [
    Column("name", lambda adapter: adapter.name),
    Column("kind", _of_version(_short_kind), drop=1),
    Column("KL", _of_version(_kl_divergence), "right", drop=5),
    Column("live", lambda adapter: short(adapter.live) if adapter.live else "not served"),
    Column("versions", lambda adapter: f"{len(adapter.versions)}", "right", drop=2),
    Column("size", _of_version(_size), "right", drop=4),
    Column("loaded", _of_version(lambda version: mark(version.loaded)), "center", drop=3),
    Column("requests", lambda adapter: f"{adapter.requests:,}", "right"),
]
