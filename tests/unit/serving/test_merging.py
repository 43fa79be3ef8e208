"""Several generators as one; whatever ends it, every source is closed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from app.serving.merging import merge


class Source:
    """Yields what is put into it; None ends it, an exception is raised."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.closed = False

    async def stream(self) -> AsyncGenerator[str]:
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


@pytest.fixture
def sources() -> list[Source]:
    return [Source(), Source(), Source()]


def _merged(sources: list[Source]) -> AsyncGenerator[str]:
    return merge([source.stream() for source in sources])


async def test_items_come_in_the_order_in_which_they_are_made(sources: list[Source]) -> None:
    merged = _merged(sources)
    for index in (2, 0, 0, 1, 2):
        sources[index].items.put_nowait(f"from {index}")
        assert await anext(merged) == f"from {index}"
    for source in sources:
        source.items.put_nowait(None)
    assert [item async for item in merged] == []
    assert all(source.closed for source in sources)


async def test_a_finished_source_leaves_the_others_running(sources: list[Source]) -> None:
    merged = _merged(sources)
    sources[0].items.put_nowait(None)
    sources[1].items.put_nowait("on")
    assert await anext(merged) == "on"
    assert [source.closed for source in sources] == [True, False, False]
    await merged.aclose()


async def test_items_before_an_error_are_yielded(sources: list[Source]) -> None:
    for item in ("a", "b", ValueError("broken")):
        sources[0].items.put_nowait(item)
    merged = _merged(sources)
    assert [await anext(merged), await anext(merged)] == ["a", "b"]
    with pytest.raises(ValueError, match="broken"):
        await anext(merged)
    assert all(source.closed for source in sources)


async def test_leaving_early_closes_all(sources: list[Source]) -> None:
    sources[0].items.put_nowait("a")
    async with aclosing(_merged(sources)) as merged:
        async for item in merged:
            assert item == "a"
            break
    assert all(source.closed for source in sources)


async def test_being_cancelled_closes_all(sources: list[Source]) -> None:
    async def consume() -> None:
        async with aclosing(_merged(sources)) as merged:
            async for _ in merged:
                pass

    consuming = asyncio.create_task(consume())
    sources[0].items.put_nowait("a")
    while not sources[0].items.empty():  # noqa: ASYNC110
        await asyncio.sleep(0)
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)
    assert consuming.cancelled()
    assert all(source.closed for source in sources)


async def test_no_sources() -> None:
    sources: list[AsyncGenerator[str]] = []
    assert [item async for item in merge(sources)] == []
