"""Percentiles that add up: counts by size, in buckets that are 1 % wide."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import log

WIDTH = 1.01
LOG_WIDTH = log(WIDTH)
SMALLEST_SECONDS = 1e-6


class Histogram:
    """How many times of each length there were; a percentile is right within half a percent."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts = Counter(counts or {})

    def add(self, seconds: Iterable[float]) -> None:
        self.counts.update(map(_bucket, seconds))

    def merge(self, other: "Histogram") -> None:
        self.counts.update(other.counts)

    @property
    def num_values(self) -> int:
        return self.counts.total()

    def percentile(self, percent: float) -> float | None:
        """The least time, in seconds, that so many percent do not exceed; None of nothing."""
        wanted = self.num_values * percent / 100
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return _middle(bucket)
        return None

    def mean(self) -> float | None:
        """In seconds; None of nothing."""
        if not self.counts:
            return None
        total = sum(_middle(bucket) * count for bucket, count in self.counts.items())
        return total / self.num_values

    def shares(self) -> list[tuple[float, float]]:
        """Of each time that there was, which share does not exceed it: the distribution."""
        seen, whole = 0, self.num_values
        points = []
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            points.append((_middle(bucket), seen / whole))
        return points


def _bucket(seconds: float) -> int:
    return int(log(max(seconds, SMALLEST_SECONDS) / SMALLEST_SECONDS) / LOG_WIDTH)


def _middle(bucket: int) -> float:
    return float(SMALLEST_SECONDS * WIDTH ** (bucket + 0.5))
