"""The engine's places: a completion holds one only while the engine works for it.

What waits for a place waits here, not in the engine, whose queue knows no callers.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import Unavailable
from app.serving.turns import Turns, Wish


class Places:
    """Waits for turns. There are no places until the engine has started."""

    def __init__(self) -> None:
        self._turns = Turns(0)
        self._waiting: dict[Wish, asyncio.Future[None]] = {}
        self._refusal: Unavailable | None = None

    def open(self, num_places: int) -> None:
        """Have so many places. Called once, before the first is asked for."""
        self._turns = Turns(num_places)

    def close(self, refusal: Unavailable) -> None:
        """Refuse whatever waits, and whatever would."""
        self._refusal = refusal
        for wish, granted in list(self._waiting.items()):
            # What is being cancelled withdraws itself.
            if not granted.done():
                del self._waiting[wish]
                self._turns.withdraw(wish)
                granted.set_exception(refusal)

    @property
    def capacity(self) -> int:
        return self._turns.capacity

    @property
    def num_held(self) -> int:
        return self._turns.num_held

    @property
    def num_waiting(self) -> int:
        """The completions that wait for a place."""
        return sum(wish.num_places for wish in self._waiting)

    @asynccontextmanager
    async def hold(self, wish: Wish) -> AsyncIterator["Place"]:
        """Places for a prompt's completions, once it is their turn."""
        place = Place(self, wish)
        await place.take()
        try:
            yield place
        finally:
            place.give_back()

    async def take(self, wish: Wish) -> None:
        if self._refusal is not None:
            raise self._refusal
        granted = self._waiting[wish] = asyncio.get_running_loop().create_future()
        self._turns.add(wish)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if self._waiting.pop(wish, None) is not None:
                self._turns.withdraw(wish)
            else:
                self.give_back(wish, wish.num_tokens)
            # Whatever stood behind it may go on.
            self._grant()
            raise

    def give_back(self, wish: Wish, num_unused_tokens: int) -> None:
        self._turns.give_back(wish, num_unused_tokens)
        self._grant()

    def _grant(self) -> None:
        for wish in self._turns.granted():
            granted = self._waiting.pop(wish)
            # Of a task that is being cancelled it is done already: that gives its places back.
            if not granted.done():
                granted.set_result(None)


class Place:
    """What one prompt's completions hold, or wait for, of the engine."""

    def __init__(self, places: Places, wish: Wish) -> None:
        self._places = places
        self._wish = wish
        self._is_held = False

    async def take(self) -> None:
        await self._places.take(self._wish)
        self._is_held = True

    def give_back(self) -> None:
        """The engine works for it no longer, or not for the time being."""
        if self._is_held:
            self._is_held = False
            self._places.give_back(self._wish, self._wish.num_tokens)

    def spend(self, num_tokens: int) -> None:
        """The engine has made so many tokens: what is given back is less by them."""
        self._wish.num_tokens = max(0, self._wish.num_tokens - num_tokens)
