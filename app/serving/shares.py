"""A number of equal things, of which no caller may take the last ones from the others."""

from collections import Counter

from app.access.caller import ANONYMOUS, Caller

# Of all there is, as much goes only to callers that hold less than their share: what a busy caller
# has been given is not taken back for the short request of another.
RESERVED_PART = 1 / 8


class Shares:
    """Who holds how many of `capacity` things."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._held: Counter[str] = Counter()
        self._weights: dict[str, float] = {}

    def fit(self, number: int) -> bool:
        """Whether as many are free."""
        return self.held + number <= self.capacity

    def may_take(self, caller: Caller, number: int) -> bool:
        """Whether as many are free for this caller."""
        if not self.fit(number):
            return False
        is_first = not self.held
        if is_first or self.held + number <= self.unreserved(caller):
            return True
        return self._held[caller.name] + number <= self._share(caller)

    def unreserved(self, caller: Caller) -> int:
        """How many there are without those that are kept for others."""
        # Without keys, there is nobody else.
        return self.capacity - (0 if caller is ANONYMOUS else int(self.capacity * RESERVED_PART))

    def take(self, caller: Caller, number: int) -> None:
        self.held += number
        self._held[caller.name] += number
        self._weights[caller.name] = caller.quotas.weight

    def give_back(self, caller: Caller, number: int) -> None:
        self.held -= number
        self._held[caller.name] -= number
        if not self._held[caller.name]:
            del self._held[caller.name], self._weights[caller.name]

    def _share(self, caller: Caller) -> float:
        """What is one's own even if one more caller comes."""
        weights = self._weights | {caller.name: caller.quotas.weight}
        return self.capacity * caller.quotas.weight / (sum(weights.values()) + 1)
