"""Who is connected: how many connections there may be, in all and from one address."""

from collections import Counter
from ipaddress import IPv6Network
from typing import Literal

# Beyond the bound in all: a probe on this machine gets through to a full server.
RESERVED_FOR_LOOPBACK = 16
# Whoever has one address of IPv6 has the whole network that begins with the same 64 bits.
IPV6_PREFIX_LENGTH = 64

# What is full: the server, or the place of one address in it.
Full = Literal["server", "address"]


def origin_of(host: str) -> str:
    """What a client's connections are counted under."""
    if ":" not in host:
        return host
    if host.startswith("::ffff:"):
        return host.removeprefix("::ffff:")
    address = host.partition("%")[0]
    return str(IPv6Network((address, IPV6_PREFIX_LENGTH), strict=False))


def _is_loopback(origin: str) -> bool:
    return origin.startswith("127.") or origin == "::/64"


class Connections:
    """The open connections of a server.

    Those of this machine itself are bounded in all only: a proxy on it brings everybody.
    """

    def __init__(self, maximum: int, max_per_address: int | None = None) -> None:
        self._maximum = maximum
        self._max_per_address = max_per_address or max(1, maximum // 2)
        self._num_open = 0
        self._num_by_origin: Counter[str] = Counter()
        # One too many each, and still to read so.
        self.turned_away: set[object] = set()

    def enter(self, origin: str) -> Full | None:
        """Count one more, or say why it is one too many. What is counted has to `leave` once."""
        if _is_loopback(origin):
            if self._num_open >= self._maximum + RESERVED_FOR_LOOPBACK:
                return "server"
        elif self._num_open >= self._maximum:
            return "server"
        elif self._num_by_origin[origin] >= self._max_per_address:
            return "address"
        self._num_open += 1
        self._num_by_origin[origin] += 1
        return None

    def leave(self, origin: str) -> None:
        self._num_open -= 1
        self._num_by_origin[origin] -= 1
        if not self._num_by_origin[origin]:
            del self._num_by_origin[origin]
