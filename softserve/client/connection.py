"""How calls are sent: the one thing in which the two clients differ."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from softserve.client.call import Answer, Call
from softserve.client.errors import ClientError
from softserve.client.retries import Retries
from softserve.client.streams import AsyncStream, Stream
from softserve.client.transport import refusal_in, told_in_sentences

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

CONNECT_TIMEOUT_SECONDS = 10.0
SESSION_HEADER = b"x-softserve-session"


@dataclass(frozen=True, slots=True)
class Options:
    """Where a server is, and how it is asked."""

    url: str
    key: str | None
    session: str | None
    timeout_seconds: float | None
    retry_seconds: float
    max_connections: int


class _Link(Generic[Http]):
    """A pool of connections to one server."""

    _http: Http

    def __init__(self, http: type[Http], options: Options) -> None:
        self._options = options
        limits = httpx.Limits(max_connections=options.max_connections)
        with self._told_in_sentences():
            self._http = http(base_url=options.url, headers=_headers(options), limits=limits)

    def _told_in_sentences(self) -> AbstractContextManager[None]:
        return told_in_sentences(self._options.url)

    def _request(self, call: Call[Any]) -> AbstractContextManager[httpx.Request]:
        seconds = None if call.patient else self._options.timeout_seconds
        return call.request(self._http, httpx.Timeout(seconds, connect=CONNECT_TIMEOUT_SECONDS))

    def _retries(self) -> Retries:
        return Retries(self._options.retry_seconds)


class Connection(_Link[httpx.Client]):
    """Waits for its answers."""

    def __init__(self, options: Options) -> None:
        super().__init__(httpx.Client, options)

    def send(self, call: Call[Answer]) -> Answer:
        def attempt() -> Answer:
            with self._told_in_sentences():
                response = self._sent(call)
                try:
                    return call.read(response.read())
                finally:
                    response.close()

        return self._tried(attempt)

    @contextmanager
    def stream(self, call: Call[Any]) -> Iterator[Stream]:
        def attempt() -> httpx.Response:
            with self._told_in_sentences():
                return self._sent(call)

        response = self._tried(attempt)
        try:
            yield Stream(response, self._told_in_sentences)
        finally:
            response.close()

    def _sent(self, call: Call[Any]) -> httpx.Response:
        """What answers, its body not read yet. Raises `Refused`."""
        with self._request(call) as request:
            response = self._http.send(request, stream=True)
        if not response.is_success:
            response.read()
            raise refusal_in(response)
        return response

    def _tried(self, attempt: Callable[[], Answer]) -> Answer:
        retries = self._retries()
        while True:
            try:
                return attempt()
            except ClientError as error:
                pause_seconds = retries.pause_after(error)
            time.sleep(pause_seconds)

    def close(self) -> None:
        self._http.close()


class AsyncConnection(_Link[httpx.AsyncClient]):
    """Lets others work while it waits."""

    def __init__(self, options: Options) -> None:
        super().__init__(httpx.AsyncClient, options)

    async def send(self, call: Call[Answer]) -> Answer:
        async def attempt() -> Answer:
            with self._told_in_sentences():
                response = await self._sent(call)
                try:
                    return call.read(await response.aread())
                finally:
                    await response.aclose()

        return await self._tried(attempt)

    @asynccontextmanager
    async def stream(self, call: Call[Any]) -> AsyncIterator[AsyncStream]:
        async def attempt() -> httpx.Response:
            with self._told_in_sentences():
                return await self._sent(call)

        response = await self._tried(attempt)
        try:
            yield AsyncStream(response, self._told_in_sentences)
        finally:
            await response.aclose()

    async def _sent(self, call: Call[Any]) -> httpx.Response:
        with self._request(call) as request:
            response = await self._http.send(request, stream=True)
        if not response.is_success:
            await response.aread()
            raise refusal_in(response)
        return response

    async def _tried(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        retries = self._retries()
        while True:
            try:
                return await attempt()
            except ClientError as error:
                pause_seconds = retries.pause_after(error)
            await asyncio.sleep(pause_seconds)

    async def close(self) -> None:
        await self._http.aclose()


def _headers(options: Options) -> dict[bytes, bytes]:
    given = {
        b"authorization": ("the key", options.key and f"Bearer {options.key}"),
        SESSION_HEADER: ("the session", options.session),
    }
    return {name: _header(what, value) for name, (what, value) in given.items() if value}


def _header(what: str, value: str) -> bytes:
    # The HTTP library's own error would show it.
    if not value.isprintable():
        raise ClientError(f"{what} has a line break or the like in it: remove it")
    return value.encode()
