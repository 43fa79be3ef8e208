"""What the commands of `softserve adapter` print.

On a terminal the tables fit its width; in a pipe an adapter, or a version, is one line.
"""

from collections.abc import Sequence

from rich import filesize
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from app.cli.canary import tried
from app.cli.console import PIPE_WIDTH, stdout
from softserve.schema.adapters import AdapterOut, VersionOut
from softserve.schema.checks import CheckedAdapter
from softserve.schema.versions import short

NO_ADAPTERS = (
    "There are no adapters: add one with `softserve adapter add NAME SOURCE`, or put its folder "
    "into the server's --adapter-dir."
)

RETIRED = "not served: its folder is gone; put it back, or use `softserve adapter rollback NAME`"
SEVERAL_RETIRED = (
    "not served: their folders are gone; put them back, or use `softserve adapter rollback NAME`"
)


def print_adapters(adapters: Sequence[AdapterOut], console: Console | None = None) -> None:
    """The answer of `GET /adapters`: a row an adapter, then what to know of some of them."""
    console = console or stdout()
    if not adapters:
        console.print(NO_ADAPTERS)
        return
    table = _list(adapters, stacked=False)
    if _natural_width(table, console) > console.width:
        table = _list(adapters, stacked=True)
    console.print(table)
    tries = (sentence for adapter in adapters for sentence in tried(adapter))
    for sentence in (*tries, *_why_not(adapters), *_warnings(adapters)):
        console.print()
        console.print(_plain(sentence))


def print_adapter(adapter: AdapterOut, console: Console | None = None) -> None:
    """The answer of `GET /adapters/{name}`: what it is, and a row a version."""
    console = console or stdout()
    version = shown_version(adapter)
    if version is not None:
        modules = f" on {', '.join(version.target_modules)}" if version.target_modules else ""
        console.print(_plain(f"{adapter.name}: {kind_of(version)}{modules}"))
        console.print(_plain(f"base model: {version.base_model or 'not declared'}"))
        for line in facts_of(version):
            console.print(_plain(line))
        console.print()
        console.print(_versions(adapter))
    for sentence in (*tried(adapter), *_why_not([adapter])):
        if version is not None:
            console.print()
        console.print(_plain(sentence))


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


def _list(adapters: Sequence[AdapterOut], *, stacked: bool) -> Table:
    """Stacked, the kind and the KL divergence stand below the name."""
    table = _table()
    table.add_column("name", overflow="fold")
    if not stacked:
        table.add_column("kind")
        table.add_column("KL", justify="right", no_wrap=True)
    table.add_column("live", no_wrap=True)
    table.add_column("versions", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("loaded", justify="center", no_wrap=True)
    table.add_column("requests", justify="right", no_wrap=True)
    for adapter in adapters:
        version = shown_version(adapter)
        about = ("", "") if version is None else (kind_of(version), _kl_divergence(version))
        table.add_row(
            *([_stacked(adapter.name, *about)] if stacked else [adapter.name, *about]),
            "not served" if adapter.live is None else short(adapter.live),
            f"{len(adapter.versions)}",
            "" if version is None else _size(version),
            _mark(version is not None and version.loaded),
            f"{adapter.requests:,}",
            style=None if adapter.live else "dim",
        )
    return table


def _stacked(name: str, kind: str, kl_divergence: str) -> Group:
    below = [kind, kl_divergence and f"KL {kl_divergence}"]
    return Group(name, *(Padding(line, (0, 0, 0, 2)) for line in below if line))


def _versions(adapter: AdapterOut) -> Table:
    table = _table()
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
            _mark(version.live),
            _mark(version.loaded),
            f"{version.created_at.astimezone():%Y-%m-%d %H:%M}",
            _size(version),
            _kl_divergence(version),
            f"{version.requests:,}",
            _plain(version.source),
        )
    return table


def _why_not(adapters: Sequence[AdapterOut]) -> list[str]:
    """Why they, or what was last put into their folders, are not served: a sentence a reason."""
    names: dict[str, list[str]] = {}
    for adapter in adapters:
        if (reason := _reason(adapter)) is not None:
            names.setdefault(reason, []).append(adapter.name)
    return [_sentence(those, reason) for reason, those in names.items()]


def _warnings(adapters: Sequence[AdapterOut]) -> list[str]:
    """What to look into before they are used: a sentence a warning."""
    names: dict[str, list[str]] = {}
    for adapter in adapters:
        version = shown_version(adapter)
        if version is not None and version.warning is not None:
            names.setdefault(version.warning, []).append(adapter.name)
    return [f"warning of {_joined(those)}: {warning}" for warning, those in names.items()]


def _reason(adapter: AdapterOut) -> str | None:
    if adapter.rejected is not None:
        served = "" if adapter.live is None else f" ({short(adapter.live)} is served)"
        return f"rejected{served}: {adapter.rejected}"
    return RETIRED if adapter.live is None else None


def _sentence(names: Sequence[str], reason: str) -> str:
    if len(names) == 1:
        return f"{names[0]} is {reason.replace('NAME', names[0]) if reason == RETIRED else reason}"
    reason = SEVERAL_RETIRED if reason == RETIRED else reason
    return f"{_joined(names)} are {reason}"


def _joined(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _natural_width(table: Table, console: Console) -> int:
    options = console.options.update_width(PIPE_WIDTH)
    return console.measure(table, options=options).maximum


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, padding=0)


def _plain(text: str) -> Text:
    """What came with an adapter may be markup, or steer a terminal."""
    return Text("".join(each if each.isprintable() else "\ufffd" for each in text))


def _size(version: VersionOut) -> str:
    return filesize.decimal(version.size_bytes)


def _mark(true: bool) -> Text:
    return Text("✓", style="green") if true else Text("·", style="dim")
