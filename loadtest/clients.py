"""Streaming clients that cost little: they share the machine's cores with the engine.

One event loop, one kept-alive connection a client, a C parser for HTTP, and no JSON but the one
event that holds the usage.
"""

import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import httptools
import uvloop

from loadtest.events import EVENT_END, holds_text
from loadtest.servers import HOST, Server

ANSWER_TIMEOUT_SECONDS = 300.0
USAGE = b'"usage":{'


class RequestFailed(Exception):
    """A server answered with an error, or with something that is no whole stream."""


@dataclass(slots=True)
class StreamedAnswer:
    """When the parts of one answer came, in seconds of `time.perf_counter`."""

    sent_at: float
    # 0: it has not ended.
    status: int = 0
    ended_at: float = 0.0
    text_events_at: list[float] = field(default_factory=list)
    completion_tokens: int = 0

    @property
    def seconds(self) -> float:
        """From sending the request to the end of its answer."""
        return self.ended_at - self.sent_at

    @property
    def ttft_seconds(self) -> float:
        """From sending the request to its first text."""
        return self.text_events_at[0] - self.sent_at

    @property
    def itl_seconds(self) -> list[float]:
        """Between one piece of text and the next."""
        times = self.text_events_at
        return [later - earlier for earlier, later in pairwise(times)]


class Connection(asyncio.Protocol):
    """One connection, which streams one answer after the other."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._received = b""
        self._usage_event = b""
        self.answer: StreamedAnswer

    async def ask(self, request: bytes) -> StreamedAnswer:
        """Send an HTTP request and read its whole answer.

        Raises:
            RequestFailed: it is no stream of text that ends with a usage.
        """
        answer = await self.send(request)
        if answer.status != 200 or not self._usage_event:
            raise RequestFailed(
                f"status {answer.status}, no usage, and at the end: "
                f"{self._received[-500:].decode(errors='replace')!r}"
            )
        return answer

    async def send(self, request: bytes) -> StreamedAnswer:
        """The whole answer, whatever it is."""
        assert self._transport is not None, "not connected"
        self._parser = httptools.HttpResponseParser(self)
        self._received = self._usage_event = b""
        self._done = asyncio.get_running_loop().create_future()
        self.answer = StreamedAnswer(sent_at=time.perf_counter())
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
            await self._done
        self.answer.status = self._parser.get_status_code()
        if self._usage_event:
            usage = json.loads(self._usage_event.removeprefix(b"data: "))["usage"]
            self.answer.completion_tokens = usage["completion_tokens"]
        return self.answer

    @property
    def is_open(self) -> bool:
        """Whether the server takes another request on it."""
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and self._parser.should_keep_alive()
        )

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of this class, and are not of it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RequestFailed("the server closed the connection"))

    # What the HTTP parser calls.

    def on_body(self, body: bytes) -> None:
        now = time.perf_counter()
        *events, self._received = (self._received + body).split(EVENT_END)
        for event in events:
            if holds_text(event):
                self.answer.text_events_at.append(now)
            if USAGE in event:
                self._usage_event = event

    def on_message_complete(self) -> None:
        self.answer.ended_at = time.perf_counter()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def streaming_body(prompt: str, num_new_tokens: int, **fields: Any) -> bytes:
    """The body that asks for a stream of exactly `num_new_tokens` tokens; greedy unless told."""
    body = {
        "prompt": prompt,
        "max_new_tokens": num_new_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    return json.dumps(body | fields).encode()


def http_request(body: bytes, key: str | None = None, path: str = "/generate") -> bytes:
    """A POST with a JSON body, as bytes."""
    authorization = "" if key is None else f"authorization: Bearer {key}\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        f"{authorization}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def stream_all(
    server: Server,
    bodies: Sequence[bytes],
    num_clients: int,
    on_answer: Callable[[], Any],
    path: str = "/generate",
) -> list[StreamedAnswer]:
    """Send every body, `num_clients` at a time: each client asks again once it is answered.

    `on_answer` is called after each answer.

    Raises:
        RequestFailed: a server answered with an error, or broke off.
    """
    # Collections in the middle of a measurement would be counted as the server's latency.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        requests = iter([http_request(body, path=path) for body in bodies])
        return runner.run(_stream_all(server, requests, num_clients, on_answer))


async def _stream_all(
    server: Server, requests: Iterator[bytes], num_clients: int, on_answer: Callable[[], Any]
) -> list[StreamedAnswer]:
    answers: list[StreamedAnswer] = []
    try:
        async with asyncio.TaskGroup() as clients:
            for _ in range(num_clients):
                clients.create_task(_be_client(server.port, requests, answers, on_answer))
    except ExceptionGroup as failures:
        # The first is the reason of the others.
        raise failures.exceptions[0] from None
    return answers


async def _be_client(
    port: int,
    requests: Iterator[bytes],
    answers: list[StreamedAnswer],
    on_answer: Callable[[], Any],
) -> None:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, HOST, port)
    try:
        for request in requests:
            answers.append(await connection.ask(request))
            on_answer()
    finally:
        connection.close()
