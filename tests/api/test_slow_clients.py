"""Clients that take their time: with a head, with a body, with reading their answer."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.http.connections import Connections
from app.http.protocol import Patience, Protocol
from tests.api.connections import Address, Answer, listening, parsed, post, sent
from tests.api.support import TIMEOUT_SECONDS, until
from tests.fake_engine import FakeEngine

HELLO = b'{"prompt": "hello", "max_new_tokens": 3}'
# Megabytes of answer: the kernel's buffers on both sides do not hold it.
LARGE = {
    "prompt": "hello",
    "temperature": 1.0,
    "n": 16,
    "max_new_tokens": 200,
    "ignore_eos": True,
    "logprobs": 20,
}
SMALL_BUFFER = 65_536

Listening = Callable[..., Any]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: FakeEngine) -> Listening:
    """A server on the fake engine, with as little patience as a test wants."""
    return lambda **settings: listening(monkeypatch, tmp_path, engine, **settings)


@asynccontextmanager
async def connected(
    address: Address, data: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(data)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_to(address: Address, data: bytes) -> Answer:
    """What a client is told that sends no more than this and waits."""
    return await asyncio.wait_for(sent(address, data), TIMEOUT_SECONDS)


async def test_a_head_that_does_not_end(patience: Listening) -> None:
    async with patience(header_timeout_seconds=0.2) as address:
        answer = await answer_to(address, b"POST /generate HTTP/1.1\r\nhost: x\r\n")
    assert (answer.status, answer.error["type"]) == (408, "request_too_slow")
    assert answer.headers["connection"] == "close"


async def test_a_head_that_comes_byte_by_byte(patience: Listening) -> None:
    async with (
        patience(header_timeout_seconds=0.2) as address,
        connected(address, b"GET /info HTTP/1.1\r\nx-slow: ") as (reader, writer),
    ):
        sending = asyncio.create_task(_send_slowly(writer))
        answer = parsed(await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS))
        sending.cancel()
    assert (answer.status, answer.error["type"]) == (408, "request_too_slow")


async def _send_slowly(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.02)


async def test_a_connection_that_says_nothing_is_told_nothing(patience: Listening) -> None:
    async with patience(header_timeout_seconds=0.2) as address, connected(address, b"") as (r, _):
        assert await asyncio.wait_for(r.read(), TIMEOUT_SECONDS) == b""


async def test_a_head_that_does_not_end_after_a_request_that_did(patience: Listening) -> None:
    kept = post(HELLO, "x-kept: open")
    async with (
        patience(header_timeout_seconds=0.2) as address,
        connected(address, kept) as (reader, writer),
    ):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /info HTTP/1.1\r\n")
        assert b"HTTP/1.1 408 " in await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)


async def test_an_idle_connection_has_more_time_than_a_head(patience: Listening) -> None:
    kept = post(HELLO, "x-kept: open")
    async with (
        patience(header_timeout_seconds=0.2) as address,
        connected(address, kept) as (reader, writer),
    ):
        await reader.readuntil(b'"sampling"')
        await asyncio.sleep(0.5)
        writer.write(post(HELLO))
        rest = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
    assert b"HTTP/1.1 200 " in rest


async def test_a_body_that_stops(patience: Listening) -> None:
    async with patience(body_timeout_seconds=0.2) as address:
        answer = await answer_to(address, post(HELLO)[:-1])
    assert (answer.status, answer.error["type"]) == (408, "request_too_slow")


async def test_a_body_that_stops_behind_another_request(patience: Listening) -> None:
    async with patience(body_timeout_seconds=0.2) as address:
        answer = await answer_to(address, post(HELLO, "x-kept: open") + post(HELLO)[:-1])
    assert answer.status == 200
    assert b"HTTP/1.1 408 " in answer.rest


async def test_a_slow_body_that_goes_on(patience: Listening) -> None:
    body = HELLO + b" " * (5 * 16_384)
    request = post(body)
    async with (
        patience(body_timeout_seconds=1.0) as address,
        connected(address, b"") as (reader, writer),
    ):
        for start in range(0, len(request), 20_000):
            writer.write(request[start : start + 20_000])
            await asyncio.sleep(0.3)
        answer = parsed(await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS))
    assert answer.status == 200


async def read_late(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that is slow to ask for the body, and answers with its length."""
    await asyncio.sleep(0.7)
    num_bytes, is_coming = 0, True
    while is_coming:
        message = await receive()
        num_bytes += len(message["body"])
        is_coming = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(num_bytes).encode()})


@pytest.mark.parametrize("expect", ["x-at: once", "expect: 100-continue"])
async def test_a_body_that_the_server_is_slow_to_read(expect: str) -> None:
    patience = Patience(header_timeout_seconds=9, body_timeout_seconds=0.2, write_timeout_seconds=9)
    protocol = partial(Protocol, Connections(9), patience, lambda reason: None)
    config = uvicorn.Config(
        read_late, http=cast(type[asyncio.Protocol], protocol), lifespan="off", log_config=None
    )
    running = uvicorn.Server(config)
    body = bytes(4 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(running._serve([listener]))
        async with connected(listener.getsockname(), b"") as (reader, writer):
            head, separator, _ = post(body, "connection: close", expect).partition(b"\r\n\r\n")
            writer.write(head + separator)
            if "continue" in expect:
                assert b" 100 " in await reader.readuntil(separator)
            writer.write(body)
            answer = parsed(await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS))
        running.should_exit = True
        await serving
    assert (answer.status, answer.rest.split()[1]) == (200, b"%d" % len(body))


def large(**fields: Any) -> bytes:
    return post(json.dumps(LARGE | fields).encode())


@asynccontextmanager
async def not_reading(address: Address, data: bytes) -> AsyncIterator[socket.socket]:
    """A client with a small buffer that sends this, and reads when the test does."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, data)
        yield client


async def until_dropped(address: Address) -> None:
    scrape = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    for _ in range(100):
        metrics = await sent(address, scrape)
        if b'softserve_rejections_total{reason="write_timeout"} 1.0' in metrics.rest:
            return
        await asyncio.sleep(0.2)
    raise AssertionError("it never was")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_reads_nothing_is_dropped(
    patience: Listening, engine: FakeEngine, stream: bool
) -> None:
    async with (
        patience(write_timeout_seconds=1.0) as address,
        not_reading(address, large(stream=stream)),
    ):
        await until(lambda: bool(engine.left_early if stream else engine.finished))
        await until_dropped(address)
        # Nobody else has noticed.
        assert (await sent(address, post(HELLO))).status == 200


async def test_a_client_that_reads_slowly_is_kept(patience: Listening) -> None:
    async with (
        patience(write_timeout_seconds=1.0) as address,
        not_reading(address, large(n=4)) as client,
    ):
        received = bytearray()
        while piece := await asyncio.get_running_loop().sock_recv(client, 200_000):
            received += piece
            await asyncio.sleep(0.2)
    answer = parsed(bytes(received))
    assert answer.status == 200
    assert len(answer.rest) == int(answer.headers["content-length"])
