"""What a reader is told of some answers."""

from dataclasses import dataclass

from loadtest.figures.histogram import Histogram
from loadtest.figures.recorder import Figures

# A name, and the time that it is called by in the reports.
SHOWN_TIMES = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E"}


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In milliseconds; None where there was nothing to measure."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, histogram: Histogram) -> "Percentiles":
        seconds = (histogram.mean(), *map(histogram.percentile, (50, 90, 99)))
        return cls(*(None if each is None else round(each * 1000, 3) for each in seconds))


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of requests; tokens and good answers a second; times.

    Good answers are those that keep the objective. `good_share` is of all that were to be answered:
    of the completed and the failed ones.
    """

    completed: int
    failed: int
    refused_429: int
    refused_503: int
    left: int
    compared_texts: int
    prompt_tokens: int
    completion_tokens: int
    requests_per_second: float
    tokens_per_second: float
    goodput: float
    good_share: float | None
    ttft: Percentiles
    itl: Percentiles
    tpot: Percentiles
    e2e: Percentiles
    refusal: Percentiles
    retry_after: Percentiles

    @classmethod
    def of(cls, figures: Figures, seconds: float) -> "Summary":
        """`seconds`: how long the load was."""
        counts, asked = figures.counts, figures.counts["completed"] + figures.counts["failed"]
        per_second = 1 / seconds if seconds else 0.0
        return cls(
            completed=counts["completed"],
            failed=counts["failed"],
            refused_429=counts["429"],
            refused_503=counts["503"],
            left=counts["left"],
            compared_texts=counts["compared_texts"],
            prompt_tokens=counts["prompt_tokens"],
            completion_tokens=counts["completion_tokens"],
            requests_per_second=round(counts["completed"] * per_second, 3),
            tokens_per_second=round(counts["completion_tokens"] * per_second, 2),
            goodput=round(counts["good"] * per_second, 3),
            good_share=round(counts["good"] / asked, 4) if asked else None,
            **{name: Percentiles.of(histogram) for name, histogram in figures.times.items()},
        )
