"""On the socket: offers to upgrade, HTTP/1.0, idle connections, what is not HTTP, and too much."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.connections import Address, listening, post, sent
from tests.api.support import TIMEOUT_SECONDS, until
from tests.fake_engine import FakeEngine

HELLO = b'{"prompt": "hello", "max_new_tokens": 3}'
STREAMED = b'{"prompt": "hello", "max_new_tokens": 3, "stream": true}'


@pytest.fixture
async def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Address]:
    async with listening(monkeypatch, tmp_path, max_body_bytes=1000) as listener:
        yield listener


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0, HTTP/1.1"])
async def test_an_offer_to_upgrade_is_ignored(address: Address, protocol: str) -> None:
    offer = ["connection: Upgrade, HTTP2-Settings, close", f"upgrade: {protocol}"]
    answer = await sent(address, post(HELLO, *offer, "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA"))
    assert answer.status == 200
    assert "upgrade" not in answer.headers
    assert len(json.loads(answer.rest)["completions"]) == 1


async def test_a_connection_on_which_an_upgrade_was_offered_goes_on(address: Address) -> None:
    offer = post(HELLO, "connection: Upgrade", "upgrade: h2c")
    answer = await sent(address, offer + post(HELLO))
    assert (answer.status, answer.rest.count(b"HTTP/1.1 200")) == (200, 1)


async def test_a_stream_to_a_client_of_http_1_0_is_not_chunked(address: Address) -> None:
    answer = await sent(address, post(STREAMED, version="1.0"))
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert answer.rest.startswith(b"data: ")
    assert answer.rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/health/live", 200),
        ("http://softserve:8000/health/live", 200),
        ("https://softserve/adapters?x=1", 200),
        ("http://softserve", 200),
        ("http://softserve/http://softserve/health/live", 404),
        ("*", 404),
    ],
)
async def test_a_target_in_absolute_form(address: Address, target: str, status: int) -> None:
    request = f"GET {target} HTTP/1.1\r\nhost: softserve\r\nconnection: close\r\n\r\n"
    assert (await sent(address, request.encode())).status == status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_head_has_the_headers_and_no_body(address: Address, method: str) -> None:
    request = f"{method} /info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await sent(address, request.encode())
    assert answer.status == 200
    has_body = len(answer.rest) == int(answer.headers["content-length"]) > 0
    assert has_body == (method == "GET")
    assert has_body or not answer.rest


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /info\r\n\r\n",
        b"GET /info HTTP/1.1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nmany\r\n",
        b"GET /info HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_the_one_error_body(
    address: Address, request_bytes: bytes
) -> None:
    answer = await sent(address, request_bytes)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.error["type"] == "invalid_request"
    assert answer.error["message"].startswith("this is not an HTTP/1.1 request")


async def test_headers_over_the_limit(address: Address) -> None:
    header = b"x-large: " + b"x" * (4 << 20)
    answer = await sent(address, b"GET /info HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n\r\n")
    assert answer.status == 431
    assert answer.error["type"] == "headers_too_large"
    assert answer.error["message"].startswith("the headers are over the limit of 65,536 bytes")


async def test_large_headers_below_the_limit(address: Address) -> None:
    answer = await sent(address, post(HELLO, "connection: close", "x-large: " + "x" * 60_000))
    assert answer.status == 200


async def test_a_client_that_sends_everything_first_sees_that_it_is_too_large(
    address: Address,
) -> None:
    answer = await sent(address, post(b" " * (16 << 20)))
    assert answer.status == 413
    assert answer.error["type"] == "body_too_large"


async def test_a_client_that_sends_everything_first_sees_that_a_key_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with listening(monkeypatch, tmp_path, admin_key="secret") as address:
        request = post(b" " * (16 << 20), path="/adapters/x").replace(b"POST", b"PUT", 1)
        answer = await sent(address, request)
    assert (answer.status, answer.error["type"]) == (401, "key_required")


async def test_what_is_too_large_is_not_asked_for(address: Address) -> None:
    request = post(b" " * 2000, "expect: 100-continue")
    answer = await sent(address, request.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert answer.status == 413


async def test_the_next_request_on_the_connection_of_one_that_was_too_large(
    address: Address,
) -> None:
    answer = await sent(address, post(b" " * 2000, "x-kept: open") + post(HELLO))
    assert (answer.status, answer.rest.count(b"HTTP/1.1 200")) == (413, 1)


async def test_what_is_sent_after_an_answer_is_bounded(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.middleware.MAX_DISCARDED_BYTES", 1 << 20)
    _, writer = await asyncio.open_connection(*address)
    writer.write(post(b"").replace(b"content-length: 0", b"content-length: 9999999999"))
    with pytest.raises(ConnectionError):
        await _send_for_ever(writer)
    writer.close()


async def _send_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def test_an_idle_connection_is_closed_after_the_time_that_was_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with listening(monkeypatch, tmp_path, keep_alive_timeout_seconds=1) as address:
        answer = await asyncio.wait_for(sent(address, post(HELLO, "x-a: b")), TIMEOUT_SECONDS)
    assert (answer.status, "connection" in answer.headers) == (200, False)


@pytest.mark.parametrize(
    ("target_length", "method", "status"),
    [(8192, "GET", 404), (8193, "GET", 414), (8193, "HEAD", 414)],
)
async def test_a_long_url(address: Address, target_length: int, method: str, status: int) -> None:
    target = "/".ljust(target_length, "x")
    request = f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await sent(address, request.encode())
    assert answer.status == status
    assert not answer.rest if method == "HEAD" else answer.error["message"]


@pytest.mark.parametrize(("num_more", "status"), [(126, 200), (127, 431)])
async def test_many_headers(address: Address, num_more: int, status: int) -> None:
    headers = "".join(f"x-{i}: y\r\n" for i in range(num_more))
    request = f"GET /info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n"
    answer = await sent(address, request.encode())
    assert answer.status == status
    assert status == 200 or answer.error["message"] == "there are more than 128 headers: send fewer"


def chunked(body: bytes, chunk_length: int) -> bytes:
    chunks = [body[start : start + chunk_length] for start in range(0, len(body), chunk_length)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    head = post(b"", "connection: close", "transfer-encoding: chunked")
    return head.replace(b"content-length: 0\r\n", b"") + framed


@pytest.mark.parametrize(("chunk_length", "status"), [(1, 400), (64, 200)])
async def test_many_chunks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk_length: int, status: int
) -> None:
    monkeypatch.setattr("app.http.bounds.MAX_SMALL_CHUNKS", 100)
    body = HELLO + b" " * (200 * chunk_length)
    async with listening(monkeypatch, tmp_path) as address:
        answer = await sent(address, chunked(body, chunk_length))
    assert answer.status == status
    assert status == 200 or answer.error["message"].startswith("the body comes in too many chunks")


@pytest.mark.parametrize("body", [HELLO, STREAMED])
async def test_a_client_that_has_said_all_gets_its_answer(address: Address, body: bytes) -> None:
    answer = await sent(address, post(body, "x-kept: open"), then_eof=True)
    # It was asked whether it is still there.
    assert (answer.status, answer.headers) == (102, {})
    assert answer.rest.startswith(b"HTTP/1.1 200 ")
    assert b'"finish_reason":"length"' in answer.rest


async def test_a_client_that_has_said_all_gets_all_its_answers(address: Address) -> None:
    answer = await sent(address, post(HELLO, "x-kept: open") * 3, then_eof=True)
    assert answer.rest.count(b'"completions"') == 3


async def test_a_client_that_has_said_half_is_not_waited_for(address: Address) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(post(HELLO)[:-1])
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("body", [HELLO, STREAMED])
async def test_the_request_of_a_client_that_has_left_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    engine: FakeEngine,
    version: str,
    body: bytes,
) -> None:
    async with listening(monkeypatch, tmp_path, engine) as address:
        engine.hold()
        _, writer = await asyncio.open_connection(*address)
        writer.write(post(body, version=version))
        await until(lambda: bool(engine.open))
        writer.close()
        await until(lambda: bool(engine.left_early))
    assert not engine.open


async def test_beyond_the_connections_that_may_be_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.http.connections.RESERVED_FOR_LOOPBACK", 0)
    async with listening(monkeypatch, tmp_path, max_connections=2) as address:
        first, second = [await asyncio.open_connection(*address) for _ in range(2)]
        answer = await sent(address, post(HELLO))
        assert (answer.status, answer.error["type"]) == (503, "too_many_connections")
        assert answer.headers["retry-after"] == "5"
        first[1].close()
        await first[0].read()
        assert (await sent(address, post(HELLO))).status == 200
        second[1].close()


async def test_beyond_the_connections_that_may_be_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.http.connections.RESERVED_FOR_LOOPBACK", 0)
    monkeypatch.setattr("app.http.protocol.MAX_TURNED_AWAY", 1)
    async with listening(monkeypatch, tmp_path, max_connections=1) as address:
        _, open_one = await asyncio.open_connection(*address)
        told, told_writer = await asyncio.open_connection(*address)
        assert b" 503 " in await told.readuntil(b"\r\n\r\n")
        reader, writer = await asyncio.open_connection(*address)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"\r\n\r\n")
        for each in (open_one, told_writer, writer):
            each.close()


async def test_beyond_the_connections_of_one_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.http.connections._is_loopback", lambda origin: False)
    async with listening(monkeypatch, tmp_path, max_connections_per_address=1) as address:
        _, writer = await asyncio.open_connection(*address)
        answer = await sent(address, post(HELLO))
        assert (answer.status, answer.error["type"]) == (429, "too_many_connections")
        writer.close()


def _num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


MISBEHAVIOUR = [
    b"",
    b"GET /in",
    b"hello\r\n\r\n",
    post(HELLO)[:-5],
    post(HELLO) + b"garbage\r\n\r\n",
    post(STREAMED, "x-kept: open") * 3,
    post(HELLO, "expect: 100-continue")[: -len(HELLO)],
    post(STREAMED, version="1.0"),
    chunked(HELLO, 2)[:-3],
    post(b" " * 2000),
]


@pytest.mark.parametrize("reset", [True, False])
async def test_clients_that_misbehave_leave_nothing_behind(address: Address, reset: bool) -> None:
    num_files, num_tasks = _num_files(), len(asyncio.all_tasks())
    clients = []
    for data in MISBEHAVIOUR * 20:
        client = socket.create_connection(address)
        client.send(data)
        await asyncio.sleep(0)
        clients.append(client)
    for client in clients:
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    await until(lambda: (_num_files(), len(asyncio.all_tasks())) == (num_files, num_tasks))
    assert (await sent(address, post(HELLO))).status == 200
