"""What the commands of `softserve template` print."""

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from app.cli.name_tables import Column, apart, listing, plain
from softserve.schema.templates import TemplateSummary
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
    return apart(listing(templates, COLUMNS, "template", console, with_retired=with_retired))


COLUMNS: list[Column[TemplateSummary]] = [
    Column("name", lambda template: template.name),
    Column("live", lambda template: short(template.live) if template.live else "not served"),
    Column("versions", lambda template: f"{len(template.versions)}", "right"),
    Column("examples", lambda template: f"{template.num_examples}", "right"),
    Column("description", lambda template: plain(template.description), fills=True),
]
