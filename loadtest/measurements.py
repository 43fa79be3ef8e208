"""What the answers of one run say, in numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.clients import StreamedAnswer


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles, in milliseconds."""

    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        return cls(round(float(p50), 2), round(float(p99), 2))


@dataclass(frozen=True, slots=True)
class Measurement:
    """The answers of one run against one server, or of several runs pooled.

    `seconds` lie between the first request and the end of the last answer.
    """

    server: str
    answers: list[StreamedAnswer]
    seconds: float

    @classmethod
    def of(cls, server: str, answers: list[StreamedAnswer]) -> "Measurement":
        started = min(answer.sent_at for answer in answers)
        ended = max(answer.ended_at for answer in answers)
        return cls(server, answers, ended - started)

    @property
    def completion_tokens(self) -> int:
        return sum(answer.completion_tokens for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Throughput: completion tokens a second, of all clients together."""
        return self.completion_tokens / self.seconds

    @property
    def ttft(self) -> Latency:
        return Latency.of([answer.ttft_seconds for answer in self.answers])

    @property
    def itl(self) -> Latency:
        return Latency.of([gap for answer in self.answers for gap in answer.itl_seconds])


def pool(measurements: Iterable[Measurement]) -> Measurement:
    """Several runs against one server as one."""
    first, *others = measurements
    pooled = first
    for other in others:
        pooled = Measurement(
            first.server,
            pooled.answers + other.answers,
            pooled.seconds + other.seconds,
        )
    return pooled
