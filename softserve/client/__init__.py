"""The client: one object for a running server, over connections that it keeps.

    with Client("http://127.0.0.1:8000") as client:
        print(client.generate("The capital of France is", max_new_tokens=8).completions[0].text)

    async with AsyncClient("http://127.0.0.1:8000") as client:
        answer = await client.generate("The capital of France is", max_new_tokens=8)

Both have the same operations (operations.py); how these are sent is in connection.py. What goes
wrong is a `ClientError` (errors.py). docs/client.md shows more.
"""

from typing import Self

from softserve.client.call import Answer, Call, as_model
from softserve.client.connection import AsyncConnection, Connection
from softserve.client.errors import (
    ClientError,
    Conflict,
    ContextWindowExceeded,
    EngineDown,
    EngineStarting,
    Interrupted,
    InvalidRequest,
    KeyRequired,
    NotAnUpload,
    NotFound,
    NotPermitted,
    NotSoftserve,
    OriginUnavailable,
    QuotaExceeded,
    Refused,
    Rejected,
    RequestTimedOut,
    ServerDraining,
    ServerFailed,
    ServerFull,
    StoreUnavailable,
    TooLarge,
    Unavailable,
    Unreachable,
)
from softserve.client.operations import Server
from softserve.client.streams import AsyncStream, Stream
from softserve.schema.events import CompletionEnd, Piece

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Call",
    "Client",
    "ClientError",
    "CompletionEnd",
    "Conflict",
    "ContextWindowExceeded",
    "EngineDown",
    "EngineStarting",
    "Interrupted",
    "InvalidRequest",
    "KeyRequired",
    "NotAnUpload",
    "NotFound",
    "NotPermitted",
    "NotSoftserve",
    "OriginUnavailable",
    "Piece",
    "QuotaExceeded",
    "Refused",
    "Rejected",
    "RequestTimedOut",
    "ServerDraining",
    "ServerFailed",
    "ServerFull",
    "StoreUnavailable",
    "Stream",
    "TooLarge",
    "Unavailable",
    "Unreachable",
    "as_model",
]


class Client(Server[Connection]):
    """A running server."""

    connect = Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def send(self, call: Call[Answer]) -> Answer:
        """Ask for what has no operation."""
        return self._connection.send(call)


class AsyncClient(Server[AsyncConnection]):
    """A running server that is asked many things at once."""

    connect = AsyncConnection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def send(self, call: Call[Answer]) -> Answer:
        """Ask for what has no operation."""
        return await self._connection.send(call)
