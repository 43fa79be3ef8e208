"""What every api test starts from."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import structlog
import uvloop

from tests.api.support import Served, serving
from tests.fake_engine import FakeEngine

# What an odd client does to a socket depends on the event loop: these run on the server's own.
ON_SOCKETS = {"test_connections", "test_slow_clients"}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.stem in ON_SOCKETS:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def events() -> Iterator[list[structlog.typing.EventDict]]:
    """The log events, in place of pages of text with every local variable."""
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as captured:
        yield captured


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def served(engine: FakeEngine) -> AsyncIterator[Served]:
    async with serving(engine) as ready:
        yield ready
