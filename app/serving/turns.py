"""Whose turn it is: weighted fair queueing among callers. Nothing here waits for anything.

Every caller has a virtual time, which runs by the tokens that it gets, divided by its weight; the
one that is furthest behind comes next (stride scheduling: Waldspurger and Weihl, 1995). A caller
that comes back after a pause begins at the present: it has saved nothing up.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from app.access.caller import Caller
from app.serving.shares import Shares


@dataclass(slots=True, eq=False)
class Wish:
    """So many places, for work of so many tokens, as far as one can know."""

    caller: Caller
    num_places: int
    num_tokens: int
    priority: int = 0


@dataclass(slots=True)
class _Line:
    """The wishes of one caller that wait (by priority, then by age), and how many are granted."""

    time: float
    waiting: list[tuple[int, int, Wish]] = field(default_factory=list)
    num_granted: int = 0

    @property
    def first(self) -> Wish:
        return self.waiting[0][2]


class Turns:
    """Gives `capacity` places out. A wish for more than a caller may hold counts as that many."""

    def __init__(self, capacity: int) -> None:
        self._shares = Shares(capacity)
        self._now = 0.0
        self._lines: dict[str, _Line] = {}
        self._ages = count()

    @property
    def capacity(self) -> int:
        return self._shares.capacity

    @property
    def num_held(self) -> int:
        """The places that are given out."""
        return self._shares.held

    def add(self, wish: Wish) -> None:
        line = self._lines.setdefault(wish.caller.name, _Line(self._now))
        if not line.waiting:
            line.time = max(line.time, self._now)
        heapq.heappush(line.waiting, (-wish.priority, next(self._ages), wish))

    def withdraw(self, wish: Wish) -> None:
        """A wish that waits is not wanted any more."""
        line = self._lines[wish.caller.name]
        line.waiting = [each for each in line.waiting if each[2] is not wish]
        heapq.heapify(line.waiting)
        self._forget_if_idle(wish.caller)

    def granted(self) -> Iterator[Wish]:
        """The wishes whose turn has come. Each holds its places from then on."""
        while (line := self._next()) is not None:
            _, _, wish = heapq.heappop(line.waiting)
            self._now = max(self._now, line.time)
            line.time += wish.num_tokens / wish.caller.quotas.weight
            line.num_granted += 1
            self._shares.take(wish.caller, self._size(wish))
            yield wish

    def give_back(self, wish: Wish, num_unused_tokens: int) -> None:
        """Its places are free; the caller has not had these of its tokens."""
        line = self._lines[wish.caller.name]
        line.time -= num_unused_tokens / wish.caller.quotas.weight
        line.num_granted -= 1
        self._shares.give_back(wish.caller, self._size(wish))
        self._forget_if_idle(wish.caller)

    def _next(self) -> _Line | None:
        """The line that is furthest behind, of those that may have more, if its first wish fits."""
        lines = [line for line in self._lines.values() if line.waiting]
        for line in sorted(lines, key=lambda line: line.time):
            size = self._size(line.first)
            if self._shares.may_take(line.first.caller, size):
                return line
            # Smaller wishes do not overtake: a large one would wait for ever.
            if not self._shares.fit(size):
                return None
        return None

    def _size(self, wish: Wish) -> int:
        return min(wish.num_places, self._shares.unreserved(wish.caller))

    def _forget_if_idle(self, caller: Caller) -> None:
        line = self._lines[caller.name]
        # One that has been ahead of the others stays so when it comes back.
        if not line.num_granted and not line.waiting and line.time <= self._now:
            del self._lines[caller.name]
