"""What a server's metrics say of the time between two readings of GET /metrics."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

# Parsing takes 20 microseconds a line, and a server with many adapters has thousands: only what is
# looked at is parsed.
LOOKED_AT = (
    "softserve_state",
    "softserve_requests_total",
    "softserve_prompt_tokens_total",
    "softserve_cached_tokens_total",
    "softserve_completion_tokens_total",
    "softserve_sequences_",
    "softserve_requests_in_flight",
    "softserve_time_to_first_token_seconds_bucket",
    "softserve_inter_token_latency_seconds_bucket",
    "softserve_named_requests_total",
    "softserve_named_requests_in_flight",
    "softserve_named_prompt_tokens_total",
    "softserve_named_completion_tokens_total",
    "softserve_named_time_to_first_token_seconds_bucket",
    "vllm:kv_cache_usage_perc",
)


# By the values of labels; what is not there is 0.
Values = defaultdict[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Reading:
    """The metrics at one moment; `seconds` is when, by any clock."""

    seconds: float
    samples: Mapping[str, list[Sample]]

    @classmethod
    def of(cls, text: str, seconds: float) -> "Reading":
        lines = [line for line in text.splitlines() if line.startswith(LOOKED_AT)]
        samples: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families("\n".join(lines)):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
        return cls(seconds, samples)

    def total(self, metric: str, **labels: str) -> float:
        """The sum of a metric's series with these labels."""
        return sum(self.by(metric, (), **labels).values())

    def by(self, metric: str, names: Sequence[str], **labels: str) -> Values:
        """The same, by the values of other labels."""
        sums: Values = defaultdict(float)
        for sample in self.samples.get(metric, ()):
            if labels.items() <= sample.labels.items():
                sums[tuple(sample.labels[name] for name in names)] += sample.value
        return sums


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two readings."""

    before: Reading
    after: Reading

    def rate(self, metric: str, **labels: str) -> float:
        """By how much a counter grew, a second."""
        return sum(self.rates(metric, (), **labels).values())

    def rates(self, metric: str, names: Sequence[str], **labels: str) -> Values:
        """The same, by the values of other labels."""
        rates = self._growth(metric, names, **labels)
        for key in rates:
            rates[key] /= self.after.seconds - self.before.seconds
        return rates

    def quantile(self, part: float, histogram: str, **labels: str) -> float | None:
        """As Prometheus estimates it; None where nothing was observed."""
        growth = self._growth(f"{histogram}_bucket", ("le",), **labels)
        below = sorted((float(bound), count) for (bound,), count in growth.items())
        if not below or below[-1][1] == 0:
            return None
        rank = part * below[-1][1]
        low_bound = low_count = 0.0
        for bound, count in below:
            if count >= rank:
                # Beyond the last bound, nothing is known.
                if bound == math.inf:
                    break
                return low_bound + (bound - low_bound) * (rank - low_count) / (count - low_count)
            low_bound, low_count = bound, count
        return low_bound

    def _growth(self, metric: str, names: Sequence[str], **labels: str) -> Values:
        before = self.before.by(metric, names, **labels)
        growth = self.after.by(metric, names, **labels)
        for key, value in growth.items():
            # A counter that is smaller than it was began anew.
            growth[key] = value - before[key] if value >= before[key] else value
        return growth
