"""Every metric of the server, by name. vLLM's own metrics are served beside them."""

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

Outcome = Literal["success", "invalid", "refused", "aborted", "failed"]

LATENCY_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)


@dataclass(slots=True, eq=False)
class AdapterUse:
    """A request in flight, and the adapters that it holds."""

    names: Collection[str] = ()
    has_tokens: bool = False


class AdapterRequests(Collector):
    """How many requests use each adapter, counted when it is asked for.

    It has the live adapters and those in use, and no other: a name that is removed leaves nothing.
    """

    def __init__(self) -> None:
        self.live: Callable[[], Collection[str]] = tuple
        self._in_flight: set[AdapterUse] = set()

    def begin(self) -> AdapterUse:
        use = AdapterUse()
        self._in_flight.add(use)
        return use

    def end(self, use: AdapterUse) -> None:
        self._in_flight.discard(use)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "softserve_adapter_requests",
            "Requests that use an adapter, by state (waiting for the first token, running).",
            labels=["adapter", "state"],
        )
        tally = Tally((name, use.has_tokens) for use in self._in_flight for name in use.names)
        for name in sorted({*self.live(), *(name for name, _ in tally)}):
            for state, has_tokens in (("waiting", False), ("running", True)):
                family.add_metric([name, state], tally[name, has_tokens])
        yield family


class Metrics:
    """One set of metrics in a registry of its own, so that two servers in a process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "softserve_requests_total",
            "Requests that ended, by endpoint and outcome (success, invalid, refused, aborted, "
            "failed).",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self.requests_in_flight = Gauge(
            "softserve_requests_in_flight", "Admitted requests.", registry=self.registry
        )
        self.sequences_in_flight = Gauge(
            "softserve_sequences_in_flight",
            "Completions being generated or waiting.",
            registry=self.registry,
        )
        self.adapters_live = Gauge(
            "softserve_adapters_live", "Adapters with a live version.", registry=self.registry
        )
        self.adapters_loaded = Gauge(
            "softserve_adapters_loaded",
            "Versions of adapters that the engine holds in memory.",
            registry=self.registry,
        )
        self.adapter_requests = AdapterRequests()
        self.registry.register(self.adapter_requests)
        self.weight_bytes = Gauge(
            "softserve_weight_bytes",
            "Bytes of the model's weights in memory, by precision and part (linear, other).",
            ["precision", "part"],
            registry=self.registry,
        )
        self.kv_cache_bytes = Gauge(
            "softserve_kv_cache_bytes", "Bytes of the KV cache in memory.", registry=self.registry
        )
        self.time_to_first_token = Histogram(
            "softserve_time_to_first_token_seconds",
            "From admission to the first token of a request.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.inter_token_latency = Histogram(
            "softserve_inter_token_latency_seconds",
            "Between two pieces of one completion, divided by the tokens of the second.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.request_duration = Histogram(
            "softserve_request_duration_seconds",
            "From admission to the last token of a request, to its end where it has none.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "softserve_prompt_tokens_total", "Prompt tokens processed.", registry=self.registry
        )
        self.cached_tokens = Counter(
            "softserve_cached_tokens_total",
            "Prompt tokens that came from the prefix cache.",
            registry=self.registry,
        )
        self.completion_tokens = Counter(
            "softserve_completion_tokens_total", "Tokens generated.", registry=self.registry
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, vLLM's (in the global registry) included."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)


def withdraw(metric: Collector) -> None:
    """Serve a metric of vLLM's no longer."""
    REGISTRY.unregister(metric)
