"""Bad hours that one server survives; the last test ends it, under load.

What kills a process is in test_deaths.py, a full disk in test_full_disk.py.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.serving.watchdog import PING_INTERVAL_SECONDS
from loadtest.servers import SOFTSERVE, Server
from loadtest.soak import soak
from tests.adapter_files import write_lora, write_soft_prompt
from tests.server.process import ServerProcess, is_free, running, until
from tests.server.requests import OpenStream, Streamed, add_adapter, generate, metric, text_of
from tests.server.tiny_models import HIDDEN_SIZE, LLAMA_MODULES, SMALL

ENGINE_TIMEOUT_SECONDS = 10.0
# The ping that finds a process stopped is sent an interval after the last, at the latest.
NOTICED_WITHIN_SECONDS = ENGINE_TIMEOUT_SECONDS + PING_INTERVAL_SECONDS
# What a busy machine may add to it.
BUSY_SECONDS = 10.0
PLENTY_SECONDS = 60.0
NUM_LEAVING = 500
NUM_ACCEPTED = 64
NUM_INSISTING = 8
NUM_SLOW_READERS = 16
LAST_CHUNK = b"data: [DONE]\n\n\r\n0\r\n\r\n"

COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"adapter": "lora"},
    {"soft_prompt": "soft"},
    {"adapter": "lora", "soft_prompt": "soft"},
]


def bodies(num_bodies: int, max_new_tokens: int) -> list[dict[str, Any]]:
    """Requests with each combination of adapters in turn."""
    common = {"prompt": "Once upon a time", "ignore_eos": True, "max_new_tokens": max_new_tokens}
    return [common | COMBINATIONS[index % len(COMBINATIONS)] for index in range(num_bodies)]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the tiny model, with a LoRA and a soft prompt."""
    folder = tmp_path_factory.mktemp("adapters")
    flags = (
        *("--model", str(tiny_model)),
        *("--engine-timeout-seconds", str(ENGINE_TIMEOUT_SECONDS)),
        *("--max-sequences-in-flight", str(NUM_LEAVING)),
        *("--drain-timeout-seconds", "60"),
    )
    with running(*SMALL, *flags) as server:
        with server.wait_until_ready().client() as client:
            add_adapter(client, "lora", write_lora(folder / "lora", LLAMA_MODULES, scale=1.0))
            add_adapter(client, "soft", write_soft_prompt(folder / "soft", 8, HIDDEN_SIZE, scale=1))
        yield server


@contextmanager
def stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("process", ["engine_process", "worker_process"])
async def test_a_stopped_process_is_noticed_and_comes_back(
    tiny: ServerProcess, process: str
) -> None:
    """Nothing new is taken meanwhile, and what was running goes on as if nothing had been.

    A request's own time limit holds meanwhile.
    """
    (body,) = bodies(1, max_new_tokens=1000)
    limited = body | {"max_new_tokens": 4000, "timeout_seconds": 3.0}
    with tiny.client() as probe:
        expected = text_of(generate(probe, **body))

        def is_ready() -> bool:
            return probe.get("/health/ready").status_code == 200

        async with tiny.async_client() as client:
            stream = OpenStream(client, **body)
            limited_stream = OpenStream(client, **limited)
            await asyncio.gather(stream.started.wait(), limited_stream.started.wait())
            with stopped(getattr(tiny, process)()):
                await until(lambda: not is_ready(), NOTICED_WITHIN_SECONDS + BUSY_SECONDS)
                refused = await client.post("/generate", json=body)
                live = await client.get("/health/live")
                out_of_time = await limited_stream.finished
                was_done = stream.finished.done()
            await until(is_ready, BUSY_SECONDS)
            streamed = await stream.finished

    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "engine_stalled"
    assert refused.headers["retry-after"]
    assert live.status_code == 200
    assert out_of_time.of()[-1]["finish_reason"] == "timeout"
    assert not was_done
    assert streamed.text() == expected
    assert streamed.done


async def test_500_clients_leave_in_the_middle(tiny: ServerProcess) -> None:
    with tiny.client() as probe:
        (question,) = bodies(1, max_new_tokens=20)
        expected = text_of(generate(probe, **question))
        num_descriptors = tiny.num_descriptors()

        def in_flight() -> float:
            return metric(probe, "softserve_sequences_in_flight")

        def is_idle() -> bool:
            of_engine = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            names = [
                *(f"vllm:{name}" for name in of_engine),
                "softserve_requests_in_flight",
            ]
            return not in_flight() and not any(metric(probe, name) for name in names)

        async with tiny.async_client() as client:
            leaving = [
                asyncio.create_task(client.post("/generate", json=body))
                for body in bodies(NUM_LEAVING // 2, max_new_tokens=4000)
                for body in (body, body | {"stream": True})
            ]
            await until(lambda: in_flight() == NUM_LEAVING, PLENTY_SECONDS)
            for request in leaving:
                request.cancel()
            outcomes = await asyncio.gather(*leaving, return_exceptions=True)
        await until(is_idle, PLENTY_SECONDS)
        await until(lambda: tiny.num_descriptors() <= num_descriptors, PLENTY_SECONDS)

        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert text_of(generate(probe, **question)) == expected


def test_readers_that_take_nothing_hold_up_nobody(tiny: ServerProcess) -> None:
    """The engine stops to work for them, long before all is made."""
    body = {"prompt": "Once upon a time", "ignore_eos": True, "stream": True, "logprobs": 5}
    body |= {"n": 16, "temperature": 1.0, "max_new_tokens": 300}
    num_asked = NUM_SLOW_READERS * 16 * 300
    (question,) = bodies(1, max_new_tokens=20)
    with tiny.client() as probe, ExitStack() as readers:
        num_made_before = metric(probe, "vllm:generation_tokens_total")
        expected = text_of(generate(probe, **question))
        connections = [readers.enter_context(asked(tiny, body)) for _ in range(NUM_SLOW_READERS)]
        for connection in connections:
            assert connection.recv(12) == b"HTTP/1.1 200"

        def is_idle() -> bool:
            names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
            return not any(metric(probe, name) for name in names)

        asyncio.run(until(is_idle, PLENTY_SECONDS))
        num_made = metric(probe, "vllm:generation_tokens_total") - num_made_before
        answers = [text_of(generate(probe, **question)) for _ in range(NUM_SLOW_READERS)]
        # Those who read at last get an end; the others leave.
        for connection in connections[2:]:
            connection.close()
        ends = [rest_of(connection)[-len(LAST_CHUNK) :] for connection in connections[:2]]

    assert num_made < num_asked / 2
    assert answers == [expected] * NUM_SLOW_READERS
    assert ends == [LAST_CHUNK] * 2


@contextmanager
def asked(server: ServerProcess, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A connection that has sent a request; little fits between the server and its reader."""
    content = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(content)}\r\n"
    head += "content-type: application/json\r\nconnection: close\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PLENTY_SECONDS)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head.encode() + content)
        yield connection


def rest_of(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.read()


def test_memory_does_not_grow(tiny: ServerProcess, tmp_path: Path) -> None:
    """A fifth of what `python -m loadtest.soak` does."""
    loras = [write_lora(tmp_path / f"{seed}", LLAMA_MODULES, seed=seed) for seed in range(16)]
    measured = Server(SOFTSERVE, tiny.port, tiny.process.pid, start_seconds=0.0)

    before, after = soak(measured, loras, num_requests=2_000, num_swaps=60)

    assert before.keys() == after.keys()
    for process, mib in after.items():
        assert mib < 1.05 * before[process], process


async def test_sigterm_under_load_loses_nothing(tiny: ServerProcess) -> None:
    """Who was accepted gets the whole answer, and who comes later a refusal; then it ends."""
    with tiny.client() as probe:
        expected = [text_of(generate(probe, **body)) for body in bodies(4, max_new_tokens=200)]
    async with tiny.async_client() as client:
        accepted = [
            asyncio.create_task(answered(client, body, stream=index % 3 == 0))
            for index, body in enumerate(bodies(NUM_ACCEPTED, max_new_tokens=200))
        ]
        insisting = [
            asyncio.create_task(ask_until_refused(client, body))
            for body in bodies(NUM_INSISTING, max_new_tokens=2)
        ]
        with tiny.client() as probe:
            await until(
                lambda: metric(probe, "softserve_requests_in_flight") >= NUM_ACCEPTED,
                PLENTY_SECONDS,
            )
        tiny.send(signal.SIGTERM)
        texts = await asyncio.gather(*accepted)
        refusals = await asyncio.gather(*insisting)
    code = await asyncio.to_thread(tiny.wait_for_exit)

    assert texts == [expected[index % 4] for index in range(NUM_ACCEPTED)]
    assert {refusal.json()["error"]["type"] for refusal in refusals} == {"server_draining"}
    assert code == 0
    assert is_free(tiny.url)


async def answered(client: httpx.AsyncClient, body: dict[str, Any], *, stream: bool) -> str:
    """The text of a completion that has come to its end."""
    response = await client.post("/generate", json=body | {"stream": stream})
    assert response.status_code == 200, response.text
    if not stream:
        return text_of(response.json())
    streamed = Streamed.of_lines(response.text.splitlines())
    assert streamed.done
    return streamed.text()


async def ask_until_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    while (response := await client.post("/generate", json=body)).status_code == 200:
        pass
    return response
