"""What the tables of adapters and of templates have alike."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli.canary import tried
from app.cli.console import PIPE_WIDTH
from softserve.schema.versions import NameFields, short

Named = TypeVar("Named", bound=NameFields)

All = Annotated[bool, typer.Option("--all", help="Also those that are retired, a row each.")]


@dataclass(frozen=True, slots=True)
class Column(Generic[Named]):
    """What is told of each name. Where not all has room, that with the highest `drop` goes first.

    A name breaks where it is too long; what `fills` has what room is left.
    """

    header: str
    cell: Callable[[Named], RenderableType]
    justify: JustifyMethod = "left"
    drop: int = 0
    fills: bool = False


def listing(
    names: Sequence[Named],
    columns: Sequence[Column[Named]],
    console: Console,
    *,
    with_retired: bool,
) -> list[RenderableType]:
    """A row a name, a line for all that are retired, and what to know of the others."""
    retired = [each for each in names if is_retired(each)]
    shown = names if with_retired else [each for each in names if not is_retired(each)]
    parts: list[RenderableType] = [_fitting(shown, columns, console)] if shown else []
    if retired and not with_retired:
        parts.append(_retired(retired, console.width))
    tries = (sentence for each in names for sentence in tried(each))
    rejections = grouped(
        shown,
        lambda each: each.rejected and rejection(each),
        lambda whose, several, why: f"{whose} {'are' if several else 'is'} {why}",
    )
    return [*parts, *map(plain, (*tries, *rejections))]


def is_retired(name: NameFields) -> bool:
    """What it was made from is gone, and nothing is wrong with it."""
    return name.live is None and name.rejected is None


def rejection(name: NameFields) -> str:
    served = "" if name.live is None else f" ({short(name.live)} is served)"
    return f"rejected{served}: {name.rejected}"


def grouped(
    names: Iterable[Named],
    reason_of: Callable[[Named], str | None],
    sentence: Callable[[str, bool, str], str],
) -> list[str]:
    """A sentence a reason, which may be that of several names."""
    by_reason: dict[str, list[str]] = {}
    for each in names:
        if (reason := reason_of(each)) is not None:
            by_reason.setdefault(reason, []).append(each.name)
    return [sentence(_joined(those), len(those) > 1, why) for why, those in by_reason.items()]


def apart(parts: Sequence[RenderableType]) -> Group:
    """With a blank line between two."""
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [*([Text()] if spaced else []), part]
    return Group(*spaced)


def plain(text: str) -> Text:
    """What came with an adapter may be markup, or steer a terminal."""
    return Text("".join(each if each.isprintable() else "\ufffd" for each in text))


def mark(true: bool) -> Text:
    return Text("✓", style="green") if true else Text("·", style="dim")


def table_of_names() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, padding=0)


def _fitting(names: Sequence[Named], columns: Sequence[Column[Named]], console: Console) -> Table:
    """With all columns that there is room for."""
    table = _table(names, columns, console.width)
    droppable = max(columns, key=lambda column: column.drop)
    if not droppable.drop or _natural_width(table, console) <= console.width:
        return table
    return _fitting(names, [each for each in columns if each is not droppable], console)


def _table(names: Sequence[Named], columns: Sequence[Column[Named]], width: int) -> Table:
    table = table_of_names()
    for column in columns:
        is_name = column.header == "name"
        # In a pipe there is room for everything.
        fills = column.fills and width < PIPE_WIDTH
        table.add_column(
            column.header,
            justify=column.justify,
            no_wrap=not is_name,
            overflow="fold" if is_name else "ellipsis",
            ratio=1 if fills else None,
        )
        table.expand = table.expand or fills
    for each in names:
        cells = [column.cell(each) for column in columns]
        table.add_row(*cells, style=None if each.live else "dim")
    return table


def _natural_width(table: Table, console: Console) -> int:
    options = console.options.update_width(PIPE_WIDTH)
    return console.measure(table, options=options).maximum


def _retired(names: Sequence[NameFields], width: int) -> Text:
    """One line, however many they are."""
    lines = (_naming(names, num_named) for num_named in range(len(names), 0, -1))
    shortest = f"{len(names)} retired (--all)"
    return plain(next((line for line in lines if len(line) <= width), shortest))


def _naming(names: Sequence[NameFields], num_named: int) -> str:
    named = ", ".join(each.name for each in names[:num_named])
    more = f" and {len(names) - num_named} more" if num_named < len(names) else ""
    return f"{len(names)} retired: {named}{more} (--all shows a row each)"


def _joined(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
