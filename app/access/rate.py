"""How fast something goes lately, to say when there will be room again."""

import time
from collections import deque
from collections.abc import Callable

NUM_REMEMBERED = 64
MAX_SECONDS = 300.0
# Where nothing has ended yet, nothing is known.
UNKNOWN_SECONDS = 1.0


class Rate:
    """Counts what ends, and when."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: deque[tuple[float, int]] = deque(maxlen=NUM_REMEMBERED)

    def count(self, number: int) -> None:
        self._counts.append((self._clock(), number))

    def seconds_for(self, number: float) -> float:
        """How long as many more take at the pace of the last ones, idle time included."""
        if not self._counts:
            return UNKNOWN_SECONDS
        seconds = self._clock() - self._counts[0][0]
        counted = sum(count for _, count in self._counts)
        return min(MAX_SECONDS, number * seconds / counted)
