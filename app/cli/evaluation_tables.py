"""What `softserve evaluate` prints."""

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from app.cli.console import stdout
from app.evaluation.bootstrap import Interval
from app.evaluation.comparison import Comparison, verdict
from app.evaluation.measures import ROUGE_PARTS, ROUGE_TYPES


def print_comparison(comparison: Comparison) -> None:
    """A row a variant, F1 with precision and recall below it, and who is best."""
    console = stdout()
    table = Table(
        title=f"{comparison.num_rows} rows; below each score its 95% interval",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("variant", overflow="fold")
    columns = _columns(comparison)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("prompt\ntokens", "completion\ntokens", "shots", "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in comparison.variants:
        table.add_row(
            Text(variant.name),
            *(_cell(name, variant.scores) for name in columns),
            f"{variant.prompt_tokens:.0f}",
            f"{variant.completion_tokens:.1f}",
            f"{variant.shots:.1f}" + (f"\n-{variant.num_dropped}" if variant.num_dropped else ""),
            f"{variant.latency_ms:,.0f} ms",
            style="bold" if variant.name == comparison.best else None,
            end_section=True,
        )
    console.print(table)
    if comparison.num_skipped:
        console.print(
            f"{comparison.num_skipped} rows were left out: not every variant could answer them."
        )
        for variant in comparison.variants:
            if variant.num_skipped:
                console.print(f"{variant.name}: {variant.num_skipped} refused", markup=False)
    console.print(verdict(comparison), markup=False)


def _columns(comparison: Comparison) -> list[str]:
    """ROUGE's precision and recall share a column with its F1."""
    names = []
    for name in comparison.variants[0].scores:
        kind = name.rpartition(" ")[0]
        column = kind if kind in ROUGE_TYPES.values() else name
        if column not in names:
            names.append(column)
    return names


def _cell(column: str, scores: dict[str, Interval]) -> str:
    if column in scores:
        return _with_interval(scores[column])
    f1, precision, recall = (scores[f"{column} {part}"] for part in ROUGE_PARTS.values())
    return f"{_with_interval(f1)}\nP {precision.score:.1f} R {recall.score:.1f}"


def _with_interval(score: Interval) -> str:
    return f"{score.score:.1f}\n{score.low:.1f} to {score.high:.1f}"
