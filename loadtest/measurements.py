"""What the answers of one run say, in numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from loadtest.clients import StreamedAnswer
from loadtest.servers import CPUSeconds


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
    cpu: CPUSeconds

    @classmethod
    def of(cls, server: str, answers: list[StreamedAnswer], cpu: CPUSeconds) -> "Measurement":
        started = min(answer.sent_at for answer in answers)
        ended = max(answer.ended_at for answer in answers)
        return cls(server, answers, ended - started, cpu)

    @property
    def prompt_tokens(self) -> int:
        return sum(answer.prompt_tokens for answer in self.answers)

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

    @property
    def serving_cpu_ms_per_token(self) -> float:
        """CPU milliseconds that the process that answers HTTP spends on a completion token."""
        return self.cpu.serving * 1000 / self.completion_tokens

    def figures(self) -> dict[str, object]:
        """For JSON."""
        return {
            "server": self.server,
            "requests": len(self.answers),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "text_events": sum(len(answer.text_events_at) for answer in self.answers),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 2),
            "ttft": asdict(self.ttft),
            "itl": asdict(self.itl),
            "serving_cpu_seconds": round(self.cpu.serving, 2),
            "engine_cpu_seconds": round(self.cpu.engine, 2),
        }


def pool(measurements: Iterable[Measurement]) -> Measurement:
    """Several runs against one server as one."""
    first, *others = measurements
    pooled = first
    for other in others:
        pooled = Measurement(
            first.server,
            pooled.answers + other.answers,
            pooled.seconds + other.seconds,
            pooled.cpu + other.cpu,
        )
    return pooled


@dataclass(frozen=True, slots=True)
class Ratio:
    """The throughput of one server over that of another: of all runs, and round by round."""

    overall: float
    rounds: list[float]

    @classmethod
    def of(cls, numerators: list[Measurement], denominators: list[Measurement]) -> "Ratio":
        return cls(
            pool(numerators).tokens_per_second / pool(denominators).tokens_per_second,
            [
                numerator.tokens_per_second / denominator.tokens_per_second
                for numerator, denominator in zip(numerators, denominators, strict=True)
            ],
        )
