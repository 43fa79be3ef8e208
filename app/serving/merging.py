"""Several asynchronous generators as one, in the order in which their items come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from app.tasks import end

T = TypeVar("T")


async def merge(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """Yield every item of every source. Leaving early, or an error in one, closes them all."""
    # A finished pump puts itself into the queue, behind all its items.
    queue: asyncio.Queue[T | asyncio.Task[None]] = asyncio.Queue()

    async def pump(source: AsyncGenerator[T]) -> None:
        async with aclosing(source):
            async for item in source:
                queue.put_nowait(item)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    for task in pumps:
        task.add_done_callback(queue.put_nowait)
    num_running = len(pumps)
    try:
        while num_running:
            item = await queue.get()
            if isinstance(item, asyncio.Task):
                item.result()
                num_running -= 1
            else:
                yield item
    finally:
        await end(pumps)
