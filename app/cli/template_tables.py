"""What `softserve template list` prints."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from app.cli.canary import tried
from app.cli.console import stdout
from softserve.schema.templates import TemplateSummary
from softserve.schema.versions import short


def print_templates(templates: Sequence[TemplateSummary]) -> None:
    """The answer of `GET /icl/templates`: a row a template."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for name in ("name", "live", "versions", "examples", "description"):
        table.add_column(name)
    for each in templates:
        table.add_row(
            each.name,
            short(each.live) if each.live else "not served",
            f"{len(each.versions)}",
            f"{each.num_examples}",
            Text((each.rejected and f"rejected: {each.rejected}") or each.description),
        )
    console = stdout()
    console.print(table)
    for sentence in (sentence for each in templates for sentence in tried(each)):
        console.print()
        console.print(Text(sentence))
