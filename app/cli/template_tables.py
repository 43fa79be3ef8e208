"""What the commands of `softserve template` print."""

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli.canary import tried
from app.cli.console import stdout
from app.cli.name_tables import Column, apart, listing, mark, plain, rejection, table_of_names
from softserve.schema.templates import TemplateOut, TemplateSummary
from softserve.schema.versions import short

NO_TEMPLATES = (
    "There are no templates: add one with `softserve template add NAME FILE`, or put its file "
    "into the server's --template-dir."
)


def templates_view(
    templates: Sequence[TemplateSummary], console: Console, *, with_retired: bool = False
) -> RenderableType:
    """The answer of `GET /icl/templates`: a row a template."""
    if not templates:
        return Text(NO_TEMPLATES)
    return apart(listing(templates, COLUMNS, console, with_retired=with_retired))


def print_template(template: TemplateOut) -> None:
    """The answer of `GET /icl/templates/{name}`, without the content: a row a version."""
    parts: list[RenderableType] = [plain(f"{template.name}: {template.description}")]
    if template.versions:
        parts.append(_versions(template))
    parts += map(plain, tried(template))
    if template.rejected is not None:
        parts.append(plain(f"{template.name} is {rejection(template)}"))
    stdout().print(apart(parts))


def _versions(template: TemplateOut) -> Table:
    table = table_of_names()
    table.add_column("version", no_wrap=True)
    table.add_column("live", justify="center", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("source", overflow="fold")
    for version in template.versions:
        table.add_row(
            short(version.version),
            mark(version.live),
            f"{version.created_at.astimezone():%Y-%m-%d %H:%M}",
            plain(version.source),
        )
    return table


COLUMNS: list[Column[TemplateSummary]] = [
    Column("name", lambda template: template.name),
    Column("live", lambda template: short(template.live) if template.live else "not served"),
    Column("versions", lambda template: f"{len(template.versions)}", "right"),
    Column("examples", lambda template: f"{template.num_examples}", "right"),
    Column("description", lambda template: plain(template.description), fills=True),
]
