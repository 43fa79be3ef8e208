"""What the tests of the client start from."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from softserve.client import connection
from tests.threaded import in_thread
from tests.unit.client.answering import Server
from tests.unit.client.asking import Ask, ask, ask_async


@pytest.fixture
def server() -> Iterator[Server]:
    with in_thread(Server()) as server:
        yield server


@pytest.fixture(params=["Client", "AsyncClient"])
def asking(request: pytest.FixtureRequest) -> Ask:
    """How each of the two clients is asked: what holds of one holds of the other."""
    return ask if request.param == "Client" else ask_async


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, in seconds. Nobody waits for them."""
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(connection, "time", SimpleNamespace(sleep=paused.append))
    monkeypatch.setattr(connection, "asyncio", SimpleNamespace(sleep=pause))
    return paused
