"""When a call is tried again: only what has surely not begun, and not beyond a deadline.

A generation that has begun is never asked for twice: neither after a lost connection, nor after an
error that may have come on the way.
"""

import random
import time

from softserve.client.errors import ClientError, Refused

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 8.0


class Retries:
    """The tries of one call."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def pause_after(self, error: ClientError) -> float:
        """The seconds to wait before the next try. Raises the error where there is none."""
        if not error.nothing_began:
            raise error
        # Clients that were refused together do not come back together.
        pause_seconds = self._pause_seconds * random.uniform(0.5, 1.0)  # noqa: S311
        if isinstance(error, Refused) and error.retry_after_seconds is not None:
            pause_seconds += error.retry_after_seconds
        if time.monotonic() + pause_seconds > self._deadline:
            raise error
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        return pause_seconds
