"""A completion whose reader is slow holds nothing in the engine, and goes on as if nothing was."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.server.process import ServerProcess, wait_until
from tests.server.requests import Streamed, generate, metric, stream

# Log probabilities, so that little time makes much to read.
BODY: dict[str, Any] = {
    "prompt": "Once upon a time",
    "n": 8,
    "temperature": 1.0,
    "seed": 5,
    "max_new_tokens": 100,
    "ignore_eos": True,
    "logprobs": 20,
}


@contextmanager
def unread(server: ServerProcess, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A stream that is asked for, and not read."""
    content = json.dumps(body | {"stream": True}).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
        "content-type: application/json\r\n\r\n"
    )
    url = httpx.URL(server.url)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((url.host, url.port))
        reader.sendall(head.encode() + content)
        yield reader


def read_all(reader: socket.socket) -> Streamed:
    response = http.client.HTTPResponse(reader)
    response.begin()
    assert response.status == 200
    return Streamed.of_lines(response.read().decode().splitlines())


def num_made(client: httpx.Client) -> float:
    return metric(client, "vllm:generation_tokens_total")


def is_paused(client: httpx.Client, num_made_before: float) -> bool:
    """Whether a request has begun and not ended, and the engine does nothing."""
    in_flight = metric(client, "softserve_requests_in_flight")
    running = metric(client, "vllm:num_requests_running")
    idle = running == 0 and metric(client, "vllm:kv_cache_usage_perc") == 0
    return in_flight == 1 and idle and num_made(client) > num_made_before + 100


def test_a_slow_reader_gets_what_a_fast_one_gets(
    server: ServerProcess, client: httpx.Client
) -> None:
    expected = stream(client, **BODY)
    before = num_made(client)

    with unread(server, BODY) as reader:
        wait_until(lambda: is_paused(client, before), seconds=60)
        generate(client, prompt="Hi", max_new_tokens=4)
        assert is_paused(client, before)
        assert num_made(client) < before + 8 * 100
        streamed = read_all(reader)

    assert streamed.done
    for index in range(BODY["n"]):
        assert streamed.text(index=index) == expected.text(index=index)
        assert streamed.of(index=index)[-1]["usage"]["completion_tokens"] == 100


def test_a_slow_reader_that_leaves_is_gone(server: ServerProcess, client: httpx.Client) -> None:
    before = num_made(client)
    with unread(server, BODY):
        wait_until(lambda: is_paused(client, before), seconds=60)

    wait_until(lambda: metric(client, "softserve_requests_in_flight") == 0, seconds=10)
    assert metric(client, "softserve_sequences_in_flight") == 0
