"""A comparison as one HTML file, which needs nothing else: a table, a plot, samples."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from app.evaluation.comparison import Comparison, verdict

BAR_HEIGHT = 34


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of the data, and what each variant made of it, in the order of the variants."""

    inputs: dict[str, object]
    reference: str
    completions: list[str]


@dataclass(frozen=True, slots=True)
class Bar:
    """A variant in the plot: `middle` in pixels from the top, the others in % of the width."""

    middle: float
    score: float
    low: float
    high: float
    best: bool


def html_report(comparison: Comparison, samples: Sequence[Sample], title: str) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("app.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        comparison=comparison,
        verdict=verdict(comparison),
        bars=_bars(comparison),
        bar_height=BAR_HEIGHT,
        samples=samples,
    )


def _bars(comparison: Comparison) -> list[Bar]:
    """The widest interval ends at the right edge."""
    scores = [variant.scores[comparison.headline] for variant in comparison.variants]
    percent = 100 / (max(score.high for score in scores) or 1.0)
    return [
        Bar(
            middle=(index + 0.5) * BAR_HEIGHT,
            score=percent * score.score,
            low=percent * score.low,
            high=percent * score.high,
            best=variant.name == comparison.best,
        )
        for index, (variant, score) in enumerate(zip(comparison.variants, scores, strict=True))
    ]
