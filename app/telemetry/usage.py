"""What requests use up and how long they take: of all together, and of each name that they use.

A name is that of a LoRA, a soft prompt, a template or a key. A request counts once for each that it
uses, under `kind`, `name` and `version`, and never for a combination of them: there are as many
series as names, not as pairs of names.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from softserve.schema.adapters import AdapterKind
from softserve.schema.fields import SHOWN_DIGITS

Kind = Literal["adapter", "soft_prompt", "template", "key"]
Outcome = Literal["success", "invalid", "refused", "aborted", "failed"]

LATENCY_BOUNDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
# Of the bounds, a name's series have every second one: what is counted below it stays the same.
NAMED_STEP = 2
# How long a name keeps its series against one that has none. Shorter than this, names that take
# turns would begin new series again and again, which Prometheus has to keep.
IDLE_SECONDS = 3600.0


def kind_of(kind: AdapterKind) -> Kind:
    """What the label says: by `adapter`, requests mean a LoRA."""
    return "adapter" if kind == "lora" else kind


class Name(NamedTuple):
    """The labels of a series."""

    kind: Kind
    name: str
    version: str = ""

    @classmethod
    def of_version(cls, kind: Kind, name: str, digest: str) -> "Name":
        return cls(kind, name, digest[:SHOWN_DIGITS])


class Distribution:
    """Durations, counted by latency."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BOUNDS) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self._seconds += seconds

    def add_to(self, family: HistogramMetricFamily, labels: Collection[str], step: int) -> None:
        """Add a series with every `step`th bound."""
        below = list(accumulate(self._counts))
        bounds = [*map(str, LATENCY_BOUNDS[::step]), "+Inf"]
        counts = [*below[:-1:step], below[-1]]
        family.add_metric(list(labels), list(zip(bounds, counts, strict=True)), self._seconds)


class Measures:
    """What is measured of some requests. `labels` are those of its series."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "inter_token_latency",
        "labels",
        "outcomes",
        "prompt_tokens",
        "queue_time",
        "time_to_first_token",
        "used_at",
    )

    def __init__(self, labels: tuple[str, ...] = ()) -> None:
        self.labels = labels
        self.outcomes: Counter[Outcome] = Counter()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.time_to_first_token = Distribution()
        self.inter_token_latency = Distribution()
        self.queue_time = Distribution()
        self.used_at = 0.0


class InFlight:
    """A request in flight: the names that it uses, and where it is measured."""

    __slots__ = ("has_tokens", "measures", "names")

    def __init__(self, total: Measures) -> None:
        self.names: list[Name] = []
        self.measures = [total]
        self.has_tokens = False


class Usage(Collector):
    """The measures of all requests, and of each name.

    At most `max_names` of a kind have series of their own; what is beyond is `other`. A name that
    is not used for an hour makes room for another.
    """

    def __init__(self, max_names: int) -> None:
        self.total = Measures()
        # Whether a name of a kind is there; of a kind without an entry, every name stays.
        self.is_known: dict[Kind, Callable[[Name], bool]] = {}
        self._max_names = max_names
        # By kind; the least recently used comes first.
        self._named: dict[Kind, dict[Name, Measures]] = {}
        self._in_flight: set[InFlight] = set()

    def begin(self) -> InFlight:
        request = InFlight(self.total)
        self._in_flight.add(request)
        return request

    def use(self, request: InFlight, name: Name) -> None:
        """A request in flight uses this name from now on."""
        request.names.append(name)
        request.measures.append(self.of(name))

    def end(self, request: InFlight) -> None:
        self._in_flight.discard(request)

    def of(self, name: Name) -> Measures:
        """The measures of a name that is used now."""
        named = self._named.setdefault(name.kind, {})
        if name not in named and len(named) >= self._max_names and not self._make_room(named):
            name = Name(name.kind, "other")
        measures = named.pop(name, None) or Measures(name)
        measures.used_at = time.monotonic()
        named[name] = measures
        return measures

    def in_flight(self, kind: Kind, *, has_tokens: bool) -> set[str]:
        """The names of a kind that requests use which wait for their first token, or have it."""
        requests = [each for each in self._in_flight if each.has_tokens == has_tokens]
        return {name.name for each in requests for name in each.names if name.kind == kind}

    def collect(self) -> Iterator[Metric]:
        """From another thread as well: it reads only copies of what grows and shrinks."""
        kinds = list(self._named.values())
        named = [measures for of_kind in kinds for measures in list(of_kind.values())]
        for field, text in COUNTERS.items():
            yield from _counters(field, text, self.total, named)
        for field, text in DISTRIBUTIONS.items():
            yield from _distributions(field, text, self.total, named)
        yield _requests(named)
        yield _requests_in_flight(list(self._in_flight))

    def forget_unknown(self) -> None:
        """Drop the series of what is not there any more."""
        for kind, is_known in self.is_known.items():
            self._named[kind] = {
                name: measures
                for name, measures in self._named.get(kind, {}).items()
                if name == Name(kind, "other") or is_known(name)
            }

    def _make_room(self, named: dict[Name, Measures]) -> bool:
        """Whether there was a name that is not used any more."""
        oldest = next(iter(named))
        if time.monotonic() - named[oldest].used_at < IDLE_SECONDS:
            return False
        del named[oldest]
        return True


COUNTERS = {
    "prompt_tokens": "Prompt tokens processed",
    "cached_tokens": "Prompt tokens that came from the prefix cache",
    "completion_tokens": "Tokens generated",
}
DISTRIBUTIONS = {
    "time_to_first_token": "From admission to the first token of a request",
    "inter_token_latency": "Between two pieces of one completion, divided by the second's tokens",
    "queue_time": "From a prompt's arrival in the engine to its first step",
}


def _counters(field: str, text: str, total: Measures, named: list[Measures]) -> Iterator[Metric]:
    yield CounterMetricFamily(f"softserve_{field}", f"{text}.", getattr(total, field))
    family = CounterMetricFamily(
        f"softserve_named_{field}", f"{text}, by name.", labels=Name._fields
    )
    for measures in named:
        family.add_metric(measures.labels, getattr(measures, field))
    yield family


def _distributions(
    field: str, text: str, total: Measures, named: list[Measures]
) -> Iterator[Metric]:
    family = HistogramMetricFamily(f"softserve_{field}_seconds", f"{text}.", labels=())
    getattr(total, field).add_to(family, (), step=1)
    yield family
    family = HistogramMetricFamily(
        f"softserve_named_{field}_seconds", f"{text}, by name.", labels=Name._fields
    )
    for measures in named:
        getattr(measures, field).add_to(family, measures.labels, step=NAMED_STEP)
    yield family


def _requests(named: list[Measures]) -> Metric:
    family = CounterMetricFamily(
        "softserve_named_requests",
        "Requests that ended, by name and outcome.",
        labels=[*Name._fields, "outcome"],
    )
    for measures in named:
        for outcome, count in list(measures.outcomes.items()):
            family.add_metric([*measures.labels, outcome], count)
    return family


def _requests_in_flight(requests: Collection[InFlight]) -> Metric:
    family = GaugeMetricFamily(
        "softserve_named_requests_in_flight",
        "Requests in flight, by name and state (waiting for the first token, running).",
        labels=[*Name._fields, "state"],
    )
    tally = Counter(
        (measures.labels, each.has_tokens)
        for each in requests
        for measures in list(each.measures)
        if measures.labels
    )
    for labels in sorted({labels for labels, _ in tally}):
        for state, has_tokens in (("waiting", False), ("running", True)):
            family.add_metric([*labels, state], tally[labels, has_tokens])
    return family
