"""The end of a load test: one HTML file that needs nothing else, and the same figures as JSON."""

import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from jinja2 import Environment as Jinja
from jinja2 import PackageLoader, StrictUndefined
from locust.env import Environment
from locust.stats import RequestStats
from pydantic_core import to_json

from loadtest.figures.histogram import Histogram
from loadtest.figures.plots import HEIGHT, WIDTH, Plot, plot
from loadtest.figures.recorder import Figures, Recorder
from loadtest.figures.summary import SHOWN_TIMES, Percentiles, Summary
from loadtest.users.asking import AskingUser
from loadtest.users.swapping import CHANGED
from softserve.schema.server import ModelInfo

SHOWN_OPTIONS = (
    *("rate", "mix", "prompt_words", "long_prompt_words", "new_tokens"),
    *("slo", "retries", "check_texts", "swap_seconds"),
)
# A plot shows no more of them than this: a longer load has longer intervals.
MAX_INTERVALS = 240
# A distribution is drawn up to here: the last percent would squeeze the others.
DRAWN_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened in some seconds: `at` is their end, in seconds from the first request."""

    at: int
    tokens_per_second: float
    requests_per_second: float
    refused_per_second: float
    failed_per_second: float
    ttft: Percentiles
    itl: Percentiles


@dataclass(frozen=True, slots=True)
class Change:
    """What SwapUser did, and how long it took, in milliseconds; from locust's statistics."""

    name: str
    count: int
    failed: int
    median: float
    slowest: float


@dataclass(frozen=True, slots=True)
class Failure:
    """As locust counts it."""

    user: str
    error: str
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured, and under which load."""

    host: str
    server: ModelInfo | None
    began_at: str
    seconds: float
    num_users: int
    options: dict[str, str | float]
    total: Summary
    by_user: dict[str, Summary]
    by_adapter: dict[str, Summary]
    changes: list[Change]
    failures: list[Failure]
    intervals: list[Interval]

    @classmethod
    def of(cls, environment: Environment, recorder: Recorder) -> "Report":
        options = environment.parsed_options
        assert options is not None, "locust was started without options"
        seconds = recorder.seconds
        return cls(
            host=str(environment.host),
            server=AskingUser.load.targets.info if hasattr(AskingUser, "load") else None,
            began_at=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(recorder.began_at)),
            seconds=round(seconds, 3),
            num_users=options.num_users or 0,
            options={name: getattr(options, name) for name in SHOWN_OPTIONS},
            total=Summary.of(recorder.total(), seconds),
            by_user=_summaries(recorder.by_user(), seconds),
            by_adapter=_summaries(recorder.by_adapter(), seconds),
            changes=_changes(environment.stats),
            failures=_failures(environment.stats),
            intervals=_intervals(recorder),
        )

    def as_json(self) -> str:
        return to_json(self, indent=2).decode() + "\n"

    def as_html(self, recorder: Recorder) -> str:
        jinja = Jinja(
            loader=PackageLoader("loadtest.figures", ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return jinja.get_template("report.html.jinja").render(
            report=self,
            shown_times=SHOWN_TIMES,
            plots=[*_plots_over_time(self.intervals), *_distributions(recorder.total())],
            width=WIDTH,
            height=HEIGHT,
        )


def write_report_at_the_end(environment: Environment, recorder: Recorder) -> None:
    """Where --report says, once all workers have told what they have."""

    def write(**_: Any) -> None:
        options = environment.parsed_options
        if options is None or not options.report or recorder.began_at is None:
            return
        report = Report.of(environment, recorder)
        page, figures = (Path(f"{options.report}.{kind}") for kind in ("html", "json"))
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(report.as_html(recorder))
        figures.write_text(report.as_json())
        sys.stderr.write(f"the report is in {page} and {figures}\n")

    environment.events.quitting.add_listener(write)


def _summaries(groups: dict[str, Figures], seconds: float) -> dict[str, Summary]:
    return {name: Summary.of(figures, seconds) for name, figures in groups.items()}


def _changes(stats: RequestStats) -> list[Change]:
    return [
        Change(
            method.lower(),
            entry.num_requests,
            entry.num_failures,
            entry.median_response_time,
            entry.max_response_time,
        )
        for (name, method), entry in stats.entries.items()
        if name == CHANGED
    ]


def _failures(stats: RequestStats) -> list[Failure]:
    errors = sorted(stats.errors.values(), key=lambda each: -each.occurrences)
    return [Failure(each.name, each.to_name(), each.occurrences) for each in errors]


def _intervals(recorder: Recorder) -> list[Interval]:
    """As many as a plot shows, each of the same whole number of seconds."""
    if recorder.began_at is None:
        return []
    length = ceil((recorder.seconds or 1) / MAX_INTERVALS)
    first = int(recorder.began_at)
    groups: defaultdict[int, Figures] = defaultdict(Figures)
    for second, figures in recorder.by_second.items():
        groups[(second - first) // length].merge(figures)
    # One in which nothing happened is one too; the last is cut off, and looks like a fall.
    return [
        _interval(length * (index + 1), length, groups[index]) for index in range(max(1, *groups))
    ]


def _interval(at: int, length: int, figures: Figures) -> Interval:
    counts = figures.counts
    return Interval(
        at,
        tokens_per_second=round(counts["tokens_that_came"] / length, 2),
        requests_per_second=round(counts["completed"] / length, 3),
        refused_per_second=round((counts["429"] + counts["503"]) / length, 3),
        failed_per_second=round(counts["failed"] / length, 3),
        ttft=Percentiles.of(figures.times["ttft"]),
        itl=Percentiles.of(figures.times["itl"]),
    )


def _plots_over_time(intervals: list[Interval]) -> list[Plot]:
    def over_time(title: str, **values: list[float | None]) -> Plot:
        return plot(
            title,
            "seconds",
            {
                name.replace("_", " "): [
                    (each.at, value)
                    for each, value in zip(intervals, line, strict=True)
                    if value is not None
                ]
                for name, line in values.items()
            },
        )

    return [
        over_time("tokens a second", tokens=[each.tokens_per_second for each in intervals]),
        over_time(
            "requests a second",
            completed=[each.requests_per_second for each in intervals],
            refused=[each.refused_per_second for each in intervals],
            failed=[each.failed_per_second for each in intervals],
        ),
        over_time(
            "TTFT, ms",
            p50=[each.ttft.p50 for each in intervals],
            p99=[each.ttft.p99 for each in intervals],
        ),
        over_time(
            "ITL, ms",
            p50=[each.itl.p50 for each in intervals],
            p99=[each.itl.p99 for each in intervals],
        ),
    ]


def _distributions(total: Figures) -> list[Plot]:
    return [
        plot(
            f"{SHOWN_TIMES[name]}: the share of those up to x",
            "ms",
            {SHOWN_TIMES[name]: _drawn(total.times[name])},
        )
        for name in ("ttft", "itl")
        if total.times[name].num_values
    ]


def _drawn(histogram: Histogram) -> list[tuple[float, float]]:
    shares = histogram.shares()
    kept = [point for point in shares if point[1] <= DRAWN_SHARE] or shares
    return [(seconds * 1000, share) for seconds, share in kept]
