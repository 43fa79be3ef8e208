"""What every api test starts from."""

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from tests.api.support import Served, serving
from tests.fake_engine import FakeEngine


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
