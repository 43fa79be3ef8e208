"""Bounds the work in flight and refuses early: a full, starting, draining or dead server says so.

It alone knows whether the server takes work: `/health/ready` reads the same `refusal`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import EngineStarting, InvalidRequest, ServerFull, Unavailable


class Admission:
    """Counts the sequences in flight. Closed at first: `open` it when the engine can generate."""

    def __init__(self, max_sequences: int) -> None:
        self._max_sequences = max_sequences
        self._sequences = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.refusal: Unavailable | None = EngineStarting()

    @property
    def sequences_in_flight(self) -> int:
        return self._sequences

    def open(self) -> None:
        self.refusal = None

    def close(self, refusal: Unavailable) -> None:
        """Refuse everything new; what is in flight stays."""
        self.refusal = refusal

    @contextmanager
    def slot(self, num_sequences: int) -> Iterator[None]:
        """Hold a slot for each of `num_sequences` completions.

        Raises:
            InvalidRequest: more than the server ever admits at once.
            Unavailable: fewer slots are free, or the server takes no work.
        """
        if self.refusal is not None:
            raise self.refusal
        if num_sequences > self._max_sequences:
            raise InvalidRequest(
                f"the request asks for {num_sequences:,} completions (prompts times n) and the "
                f"server runs at most {self._max_sequences:,} at once: split the request",
                param="n",
            )
        if self._sequences + num_sequences > self._max_sequences:
            raise ServerFull(
                f"the server has {self._sequences:,} completions in flight and admits "
                f"{self._max_sequences:,}: try again in a moment"
            )
        self._sequences += num_sequences
        self._idle.clear()
        try:
            yield
        finally:
            self._sequences -= num_sequences
            if self._sequences == 0:
                self._idle.set()

    async def wait_until_idle(self) -> None:
        await self._idle.wait()
