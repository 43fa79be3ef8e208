"""Several versions behind one name, and which of them a request gets.

Where a request stays with its version, that follows from a hash (weighted rendezvous): each version
draws a number from what identifies the request, divides it by its weight, and the least wins. So
nothing is remembered, the parts are as the weights say, and a version that gets more weight takes
requests from the others and gives none away.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from softserve.schema.versions import Sticky

DRAW_BYTES = 8


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for a name: the name of a key, and a session; None is nobody in particular."""

    key: str | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """The bare name means one of these versions, by weight.

    With `sticky`, requests of one key, or of one session, get the same version. A request that has
    none is dealt as without.
    """

    weights: Mapping[str, int]
    sticky: Sticky = "none"

    def choose(self, name: str, asker: Asker) -> str:
        """The digest of the version that a request gets."""
        identity = self._identity(asker)
        if identity is None:
            digests, weights = tuple(self.weights), tuple(self.weights.values())
            return random.choices(digests, weights)[0]  # noqa: S311 (it shares traffic)
        return min(
            self.weights,
            key=lambda digest: _draw(name, identity, digest) / self.weights[digest],
        )

    def _identity(self, asker: Asker) -> str | None:
        match self.sticky:
            case "none":
                return None
            case "key":
                return asker.key
            case "session":
                return asker.session


def _draw(*parts: str) -> float:
    """An exponentially distributed number, always the same for the same parts.

    Of several, each divided by a weight, the least is the one's whose weight it is with a
    probability in proportion to that weight.
    """
    # No part holds a NUL.
    number = int.from_bytes(
        blake2b("\0".join(parts).encode(), digest_size=DRAW_BYTES).digest(), "big"
    )
    return -math.log((number + 1) / (1 << 8 * DRAW_BYTES))
