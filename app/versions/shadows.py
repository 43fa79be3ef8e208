"""A version that runs on copies of requests, and what came of them."""

import random
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets copies of so many percent of the requests that the live one answers."""

    digest: str
    percent: float
    since: datetime

    def takes_one(self) -> bool:
        """Whether the next request is among them."""
        return random.random() * 100 < self.percent  # noqa: S311 (it samples traffic)


@dataclass(slots=True)
class ShadowTally:
    """Of one shadow: copies by how they ended, and the completed ones beside their live answers.

    `compared` are the completions of greedy requests, `equal` those among them with the same text;
    `agreement` is the sum of how far each agrees, from 0 to 1.
    """

    completed: int = 0
    failed: int = 0
    skipped: int = 0
    live_seconds: float = 0.0
    shadow_seconds: float = 0.0
    live_tokens: int = 0
    shadow_tokens: int = 0
    compared: int = 0
    equal: int = 0
    agreement: float = 0.0

    @property
    def mean_agreement(self) -> float | None:
        return self.agreement / self.compared if self.compared else None
