"""How many connections there may be, in all and from one address."""

import pytest

from app.http.connections import RESERVED_FOR_LOOPBACK, Connections, Full, origin_of


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_what_a_client_is_counted_under(host: str, origin: str) -> None:
    assert origin_of(host) == origin


def entered(connections: Connections, origin: str, number: int) -> list[Full | None]:
    return [connections.enter(origin) for _ in range(number)]


def test_one_address_has_half_unless_it_is_said() -> None:
    assert entered(Connections(4), "a", 3) == [None, None, "address"]
    assert entered(Connections(1), "a", 2) == [None, "server"]
    assert entered(Connections(4, 1), "a", 2) == [None, "address"]


def test_who_leaves_makes_room() -> None:
    connections = Connections(2, 1)
    assert [connections.enter(origin) for origin in "aabc"] == [None, "address", None, "server"]
    connections.leave("a")
    assert [connections.enter(origin) for origin in "bca"] == ["address", None, "server"]


@pytest.mark.parametrize("origin", ["127.0.0.1", "127.9.9.9", "::/64"])
def test_this_machine_has_a_reserve(origin: str) -> None:
    connections = Connections(2, 1)
    assert entered(connections, "a", 1) + entered(connections, "b", 1) == [None, None]
    assert connections.enter("c") == "server"
    assert entered(connections, origin, RESERVED_FOR_LOOPBACK) == [None] * RESERVED_FOR_LOOPBACK
    assert connections.enter(origin) == "server"
