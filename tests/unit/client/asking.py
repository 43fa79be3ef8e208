"""One way to ask both clients."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from softserve.client import AsyncClient, Client

# Does something with the client of a URL, which has these options; the result.
Ask = Callable[..., Any]


def ask(url: str, what: Callable[[Any], Any], **options: Any) -> Any:
    with Client(url, **options) as client:
        return what(client)


def ask_async(url: str, what: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, **options) as client:
            return await what(client)

    return asyncio.run(run())
