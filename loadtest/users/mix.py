"""How requests are shared among adapters."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mix:
    """A distribution over any number of names; without weights, they take turns."""

    exponent: float | None = None
    weights: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """
        Raises:
            ValueError: it is none.
        """
        kind, _, value = text.partition(":")
        try:
            match kind:
                case "zipf":
                    return cls(exponent=float(value))
                case "weights":
                    return cls(weights=_weights(value))
                case "round-robin" if not value:
                    return cls()
        except ValueError as error:
            raise ValueError(f"{text!r} is no mix: {error}") from None
        raise ValueError(f"{text!r} is no mix: write zipf:EXPONENT, round-robin, or weights:5,3,1")

    def weights_of(self, count: int) -> list[float]:
        """How often each of `count` names is asked for, relative to the others.

        With Zipf's law the k-th has k^-exponent (https://en.wikipedia.org/wiki/Zipf%27s_law). Names
        beyond the weights that were given have 0.
        """
        if self.exponent is not None:
            return [(rank + 1) ** -self.exponent for rank in range(count)]
        weights = list(self.weights or [1.0] * count)[:count]
        return weights + [0.0] * (count - len(weights))

    def choices(self, names: Sequence[T]) -> Iterator[T]:
        """One after the other, for ever; of nothing, nothing."""
        if self.exponent is None and not self.weights:
            yield from cycle(names)
        cumulative = list(accumulate(self.weights_of(len(names))))
        while names:
            yield random.choices(names, cum_weights=cumulative)[0]


def _weights(text: str) -> tuple[float, ...]:
    weights = tuple(map(float, text.split(",")))
    if min(weights) < 0 or not sum(weights):
        raise ValueError("weights are not negative, and not all 0")
    return weights
