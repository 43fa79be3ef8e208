"""What a good answer keeps: goodput counts the answers that do."""

import re
from dataclasses import dataclass

from loadtest.users.answers import Answer

NAMES = ("ttft", "itl", "tpot", "e2e")
SECONDS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Objective:
    """The most seconds that each of some times may take."""

    limits: dict[str, float]

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """`ttft=500ms,itl=100ms`.

        Raises:
            ValueError: it is something else.
        """
        limits = {}
        for part in text.split(","):
            name, _, limit = part.strip().partition("=")
            match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", limit)
            if name not in NAMES or not match:
                raise ValueError(f"{part!r} is none of {', '.join(NAMES)} with a time: ttft=500ms")
            limits[name] = float(match[1]) * SECONDS[match[2]]
        return cls(limits)

    def is_kept_by(self, answer: Answer) -> bool:
        """Whether every limit is kept. An answer that came at once has only an `e2e`."""
        slowest = {
            "ttft": answer.ttft,
            "itl": max(answer.itl, default=None),
            "tpot": answer.tpot,
            "e2e": answer.e2e,
        }
        return all((slowest[name] or 0.0) <= limit for name, limit in self.limits.items())
