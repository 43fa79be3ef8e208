"""What `softserve inspect` prints."""

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softserve.schema.controls import FILTERS, Sampling
from softserve.schema.inspection import InspectAnswer

TOKEN_WIDTH = 16


def print_distribution(answer: InspectAnswer, console: Console | None = None) -> None:
    """The answer of `POST /inspect`: a row a token, a bar for its chance to be sampled."""
    sampling = answer.sampling
    filters = list(answer.tokens[0].kept_by)
    table = Table(
        title=_title(sampling),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=True,
    )
    table.add_column("token", no_wrap=True, max_width=TOKEN_WIDTH)
    table.add_column("id", justify="right", style="dim", no_wrap=True)
    table.add_column("model", justify="right", no_wrap=True)
    table.add_column("temp.", justify="right", no_wrap=True)
    for name in filters:
        table.add_column(name, justify="center", no_wrap=True)
    table.add_column("sampled", justify="right", no_wrap=True)
    table.add_column("", ratio=1)
    largest = max(token.final for token in answer.tokens)
    for token in answer.tokens:
        table.add_row(
            Text(repr(token.token)),
            str(token.token_id),
            f"{token.probability:.4f}",
            f"{token.after_temperature:.4f}",
            *(_mark(token.kept_by[name]) for name in filters),
            f"{token.final:.4f}",
            Bar(size=largest, begin=0, end=token.final, color="cyan"),
            style=None if token.final else "dim",
        )
    console = console or Console()
    console.print(table)
    console.print(
        f"{answer.num_surviving:,} of {answer.vocabulary_size:,} tokens can be sampled; "
        f"after temperature they hold {answer.surviving_mass:.2%} of the probability."
    )


def _title(sampling: Sampling) -> str:
    if sampling.greedy:
        return "greedy: the most likely token is taken"
    fields = Sampling.model_fields
    values = {name: getattr(sampling, name) for name in FILTERS}
    given = [f"{name} {each}" for name, each in values.items() if each != fields[name].default]
    return ", ".join([f"temperature {sampling.temperature}", *given])


def _mark(kept: bool | None) -> Text:
    match kept:
        case True:
            return Text("✓", style="green")
        case False:
            return Text("✗", style="red")
        case None:
            return Text("·", style="dim")
