"""What became of one request, and when the pieces of its answer came."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

# 429 and 503 are refusals: the server says that it is not the time. A client may leave.
Outcome = Literal["completed", "failed", "429", "503", "left"]


@dataclass(slots=True)
class Answer:
    """Times are in seconds from `sent_at`, which is a time of the clock (`time.time`)."""

    user: str
    adapter: str
    sent_at: float
    outcome: Outcome = "failed"
    # Of a stream: when each event with text came.
    texts_at: list[float] = field(default_factory=list)
    e2e: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retry_after: float | None = None
    text_was_compared: bool = False

    @property
    def ttft(self) -> float | None:
        """Time to first token: until the first text."""
        return self.texts_at[0] if self.texts_at else None

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies: between one text and the next."""
        return [later - earlier for earlier, later in pairwise(self.texts_at)]

    @property
    def tpot(self) -> float | None:
        """Time per output token: (E2E - TTFT) / (completion tokens - 1)."""
        if self.ttft is None or self.completion_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.completion_tokens - 1)
