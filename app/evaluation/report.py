"""A comparison as one HTML file, which needs nothing else: a table, a plot, samples."""

from collections.abc import Sequence
from html import escape

from app.evaluation.comparison import Comparison, Sample, verdict

BAR_HEIGHT = 34
NAME_WIDTH = 280
PLOT_WIDTH = 520
VALUE_WIDTH = 150
STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --best: #2a9d64; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, th.number, td.name { white-space: nowrap; }
tr.best td { font-weight: 600; }
small { opacity: .65; font-weight: 400; }
pre { white-space: pre-wrap; font: inherit; margin: 0; min-width: 12rem; max-width: 26rem; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
"""


def html_report(comparison: Comparison, samples: Sequence[Sample], title: str) -> str:
    """The whole page."""
    skipped = (
        f" {comparison.num_skipped} were left out, because not every variant could answer them."
        if comparison.num_skipped
        else ""
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{comparison.num_rows} rows.{skipped} {escape(verdict(comparison))}</p>",
            f"<h2>{escape(comparison.headline)}, with 95% bootstrap intervals</h2>",
            _plot(comparison),
            "<h2>All figures</h2>",
            _table(comparison),
            "<h2>Samples</h2>",
            _samples(comparison, samples),
            "</body></html>",
            "",
        ]
    )


def _plot(comparison: Comparison) -> str:
    """A bar a variant, a whisker for its interval."""
    scores = [(row.name, row.scores[comparison.headline]) for row in comparison.rows]
    largest = max(score.high for _, score in scores) or 1.0
    height = BAR_HEIGHT * len(scores)
    marks = []
    for place, (name, score) in enumerate(scores):
        top, middle = place * BAR_HEIGHT, place * BAR_HEIGHT + BAR_HEIGHT / 2
        low, high, end = (
            NAME_WIDTH + PLOT_WIDTH * value / largest
            for value in (score.low, score.high, score.score)
        )
        colour = "var(--best)" if name == comparison.best else "var(--bar)"
        marks.append(
            f'<text x="{NAME_WIDTH - 10}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{NAME_WIDTH}" y="{top + 7}" width="{end - NAME_WIDTH:.1f}" '
            f'height="{BAR_HEIGHT - 14}" fill="{colour}" opacity=".75"/>'
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10'
            f'M{high:.1f} {middle - 5}v10" stroke="currentColor" fill="none"/>'
            f'<text x="{NAME_WIDTH + PLOT_WIDTH + 12}" y="{middle + 4}">{score.score:.1f} '
            f"({score.low:.1f} to {score.high:.1f})</text>"
        )
    width = NAME_WIDTH + PLOT_WIDTH + VALUE_WIDTH
    return (
        f'<div class="scroll"><svg width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(comparison.headline)} of each variant">{"".join(marks)}</svg></div>'
    )


def _table(comparison: Comparison) -> str:
    columns = list(comparison.rows[0].scores)
    heads = [*columns, "prompt tokens", "completion tokens", "shots", "dropped", "latency"]
    lines = [
        '<div class="scroll"><table><thead><tr><th>variant</th>',
        *(f'<th class="number">{escape(head)}</th>' for head in heads),
        "</tr></thead><tbody>",
    ]
    for row in comparison.rows:
        cells = [
            f"{score.score:.1f}<br><small>{score.low:.1f} to {score.high:.1f}</small>"
            for score in row.scores.values()
        ]
        cells += [
            f"{row.prompt_tokens:.1f}",
            f"{row.completion_tokens:.1f}",
            f"{row.shots:.1f}",
            f"{row.num_dropped}",
            f"{row.latency_ms:,.0f} ms",
        ]
        best = ' class="best"' if row.name == comparison.best else ""
        lines.append(f'<tr{best}><td class="name">{escape(row.name)}</td>')
        lines += [f'<td class="number">{cell}</td>' for cell in cells]
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def _samples(comparison: Comparison, samples: Sequence[Sample]) -> str:
    heads = ["inputs", "reference", *(row.name for row in comparison.rows)]
    lines = [
        '<div class="scroll"><table><thead><tr>',
        *(f"<th>{escape(head)}</th>" for head in heads),
        "</tr></thead><tbody>",
    ]
    for sample in samples:
        inputs = "\n\n".join(f"{name}: {value}" for name, value in sample.inputs.items())
        cells = [inputs, sample.reference, *sample.completions]
        lines.append("<tr>" + "".join(f"<td><pre>{escape(c)}</pre></td>" for c in cells) + "</tr>")
    return "".join([*lines, "</tbody></table></div>"])
