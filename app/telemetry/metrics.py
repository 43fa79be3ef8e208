"""Every metric of the server. vLLM's own metrics are served beside them."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.telemetry.usage import LATENCY_BOUNDS, Usage

LOAD_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Series = Iterable[tuple[Collection[str], float]]


class Metrics:
    """One set of metrics in registries of its own, so that two servers in a process stay apart.

    `usage` has those of requests and of the names that they use. `shown` has what other parts of
    the server know anyway: `app/serving/observation.py` says what.
    """

    def __init__(self, max_names: int) -> None:
        self.registry = CollectorRegistry()
        self.shown = CollectorRegistry()
        self.usage = Usage(max_names)
        self.registry.register(self.usage)
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "softserve_requests_total",
            "Requests that ended, by endpoint and outcome (success, invalid, refused, aborted, "
            "failed).",
            ["endpoint", "outcome"],
            **own,
        )
        self.rejections = Counter(
            "softserve_rejections_total",
            "Requests and connections that were turned away whatever they asked for, by the type "
            "of the error.",
            ["reason"],
            **own,
        )
        self.requests_in_flight = Gauge("softserve_requests_in_flight", "Admitted requests.", **own)
        self.request_duration = Histogram(
            "softserve_request_duration_seconds",
            "From admission to the last token of a request, to its end where it has none.",
            buckets=LATENCY_BOUNDS,
            **own,
        )
        self.adapter_load_seconds = Histogram(
            "softserve_adapter_load_seconds",
            "How long the engine took to load a version, by kind (adapter, soft_prompt).",
            ["kind"],
            buckets=LOAD_BOUNDS,
            **own,
        )
        self.adapter_load_failures = Counter(
            "softserve_adapter_load_failures_total",
            "Versions that the engine could not load, by kind.",
            ["kind"],
            **own,
        )
        for kind in ("adapter", "soft_prompt"):
            # To an alert, what begins with 1 has not grown.
            self.adapter_load_failures.labels(kind)
        self.adapter_evictions = Counter(
            "softserve_adapter_evictions_total",
            "Versions that were unloaded to make room for another, by kind.",
            ["kind"],
            **own,
        )
        self.weight_bytes = Gauge(
            "softserve_weight_bytes",
            "Bytes of the model's weights in memory, by precision and part (linear, other).",
            ["precision", "part"],
            **own,
        )
        self.kv_cache_bytes = Gauge(
            "softserve_kv_cache_bytes", "Bytes of the KV cache in memory.", **own
        )

    def show_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Serve a gauge of this value."""
        self.show_gauges(name, text, (), lambda: [((), value())])

    def show_gauges(
        self, name: str, text: str, labels: Collection[str], series: Callable[[], Series]
    ) -> None:
        """Serve a gauge of these values by these labels, and of no others."""
        self.shown.register(Shown(GaugeMetricFamily, name, text, labels, series))

    def show_counters(
        self, name: str, text: str, labels: Collection[str], series: Callable[[], Series]
    ) -> None:
        """The same, of values that only grow."""
        self.shown.register(Shown(CounterMetricFamily, name, text, labels, series))

    async def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, vLLM's (in the global registry) included.

        A thread writes them: thousands of series take a while. What it reads may change meanwhile;
        what the event loop alone may read is read first.
        """
        self.usage.forget_unknown()
        shown = Read(self.shown.collect())
        return await asyncio.to_thread(
            lambda: b"".join(generate_latest(each) for each in (shown, self.registry, REGISTRY))
        )


class Shown(Collector):
    """A metric of what another part of the server knows anyway, read when it is asked for."""

    def __init__(
        self,
        family: Callable[..., GaugeMetricFamily | CounterMetricFamily],
        name: str,
        text: str,
        labels: Collection[str],
        series: Callable[[], Series],
    ) -> None:
        self._family = family
        self._name = name
        self._text = text
        self._labels = list(labels)
        self._series = series

    def collect(self) -> Iterator[Metric]:
        family = self._family(self._name, self._text, labels=self._labels)
        for labels, value in self._series():
            family.add_metric(list(labels), value)
        yield family


class Read(Collector):
    """What the metrics were at one moment."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def withdraw(metric: Collector) -> None:
    """Serve a metric of vLLM's no longer."""
    REGISTRY.unregister(metric)
