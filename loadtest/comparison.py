"""Two servers' runs beside each other: medians, how far the runs lie apart, and ratios."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

# What is compared: the field of a `Run`, its name in a table, and its digits after the point.
METRICS = (
    ("tokens_per_second", "tokens/s", 1),
    ("ttft_p50_ms", "TTFT p50, ms", 0),
    ("ttft_p99_ms", "TTFT p99, ms", 0),
    ("itl_p50_ms", "ITL p50, ms", 1),
    ("itl_p99_ms", "ITL p99, ms", 1),
    ("tpot_p50_ms", "TPOT p50, ms", 1),
    ("http_cpu_ms_per_token", "HTTP CPU, ms/token", 3),
    ("engine_cpu_ms_per_token", "engine CPU, ms/token", 3),
    ("client_cpu_ms_per_token", "client CPU, ms/token", 3),
)


class RunFailed(Exception):
    """A server answered with an error, or not with what it was asked for."""


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one server.

    Times are from sending a request, not from its arrival: until then it waits for a client, not
    for the server. ITL is over the `inter_token_gaps` between two events with text; TPOT is
    (E2E - TTFT) / (completion_tokens - 1). The engine's CPU is that of all of its processes.
    """

    server: str
    clients: int
    requests: int
    arrivals_per_second: float
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    inter_token_gaps: int
    peak_tokens_per_second: float
    tokens_per_second: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    tpot_p50_ms: float
    http_cpu_ms_per_token: float
    engine_cpu_ms_per_token: float
    client_cpu_ms_per_token: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of several runs."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of two servers at a number of clients, and ours over theirs in each round."""

    ours: Spread
    theirs: Spread
    ratios: list[float]
    mean_ratio: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Comparison":
        # CPU time is counted in steps of 10 ms: in a very short run there may be none.
        ratios = [a / b if b else math.nan for a, b in zip(ours, theirs, strict=True)]
        return cls(Spread.of(ours), Spread.of(theirs), ratios, statistics.fmean(ratios))


def by_clients(runs: Sequence[Run], ours: str, theirs: str) -> dict[int, dict[str, Comparison]]:
    """Every metric at each number of clients; a server's runs are in the order of the rounds."""

    def values(server: str, clients: int, field: str) -> list[float]:
        of_these = [run for run in runs if (run.server, run.clients) == (server, clients)]
        return [getattr(run, field) for run in of_these]

    return {
        clients: {
            field: Comparison.of(values(ours, clients, field), values(theirs, clients, field))
            for field, _, _ in METRICS
        }
        for clients in dict.fromkeys(run.clients for run in runs)
    }


def table_of(title: str, comparisons: dict[str, Comparison], ours: str, theirs: str) -> Table:
    """A row for each metric."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("median (lowest–highest)", no_wrap=True)
    for name in (ours, theirs, "mean ratio", "by round"):
        table.add_column(name, justify="right", no_wrap=True)
    for field, label, digits in METRICS:
        compared = comparisons[field]
        table.add_row(
            label,
            _shown(compared.ours, digits),
            _shown(compared.theirs, digits),
            f"{compared.mean_ratio:.3f}",
            ", ".join(f"{ratio:.3f}" for ratio in compared.ratios),
        )
    return table


def _shown(spread: Spread, digits: int) -> str:
    median, lowest, highest = (
        f"{value:,.{digits}f}" for value in (spread.median, spread.lowest, spread.highest)
    )
    return median if lowest == highest else f"{median} ({lowest}–{highest})"
