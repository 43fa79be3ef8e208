"""Start, drain and death of a real process. These tests end the server that they use."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable

import pytest

from tests.server.process import ServerProcess, running
from tests.server.requests import OpenStream

LONG = {"prompt": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True}
PLENTY_SECONDS = 60.0
# An engine that is going to end by itself does so at once.
LONG_ENOUGH_SECONDS = 10.0


def is_free(url: str) -> bool:
    """Whether nothing listens on the port any more."""
    port = int(url.rsplit(":", 1)[1])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


async def test_sigterm_drains(server: ServerProcess) -> None:
    """The shared server's end: short requests finish, long ones are aborted with their text."""
    async with server.async_client() as client:
        expected = (await client.post("/generate", json=LONG | {"max_new_tokens": 60})).json()
        short = OpenStream(client, **LONG | {"max_new_tokens": 60})
        long = OpenStream(client, **LONG)
        unstreamed = asyncio.create_task(client.post("/generate", json=LONG))
        await short.started.wait()
        await long.started.wait()

        # Ctrl-C in a terminal reaches the engine's processes as well: they must not mind.
        for engine_process in set(server.group()) - {server.process.pid}:
            os.kill(engine_process, signal.SIGINT)
        server.send(signal.SIGTERM)
        await asyncio.to_thread(server.wait_for_event, "draining")
        refused = await client.post("/generate", json={"prompt": "Hi"})
        ready = await client.get("/health/ready")
        live = await client.get("/health/live")

        finished, aborted, answer = await asyncio.gather(short.finished, long.finished, unstreamed)
        code = await asyncio.to_thread(server.wait_for_exit)

    assert refused.status_code == ready.status_code == 503
    assert refused.json()["error"]["type"] == "server_draining"
    assert refused.headers["retry-after"]
    assert live.status_code == 200
    assert finished.done
    assert finished.text() == expected["completions"][0]["text"]
    assert finished.of()[-1]["finish_reason"] == "length"
    assert aborted.done
    assert aborted.of()[-1]["finish_reason"] == "abort"
    assert len(aborted.text()) > len(finished.text())
    assert answer.status_code == 200
    assert answer.json()["completions"][0]["finish_reason"] == "abort"
    assert code == 0
    assert server.group() == []
    assert is_free(server.url)


async def test_a_start_then_a_killed_engine() -> None:
    """Live at once, not ready until loaded; a dead engine answers everyone and ends the server."""
    with running() as server:
        server.wait_until_listening()
        async with server.async_client() as client:
            live = await client.get("/health/live")
            ready = await client.get("/health/ready")
            early = await client.post("/generate", json={"prompt": "Hi"})
            info = await client.get("/info")
            await asyncio.to_thread(server.wait_until_ready)
            ready_later = await client.get("/health/ready")
            streaming = OpenStream(client, **LONG)
            unstreamed = asyncio.create_task(client.post("/generate", json=LONG))
            await streaming.started.wait()

            os.kill(server.engine_process(), signal.SIGKILL)
            answer = await unstreamed
            streamed = await streaming.finished
        code = await asyncio.to_thread(server.wait_for_exit)

        assert live.status_code == 200
        assert {ready.status_code, early.status_code, info.status_code} == {503}
        assert early.json()["error"]["type"] == "engine_starting"
        assert ready_later.status_code == 200
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "engine_died"
        assert answer.headers["retry-after"]
        assert "event: error" in streaming.raw
        assert streamed.events[-1]["error"]["type"] == "engine_died"
        assert not streamed.done
        assert code == 1
        assert server.group() == []
        assert is_free(server.url)


def test_a_signal_while_loading_ends_the_start() -> None:
    with running() as server:
        server.wait_until_listening()
        with server.client() as client:
            assert client.get("/health/live").status_code == 200

        server.send_to_group(signal.SIGINT)

        assert server.wait_for_exit() == 0
        assert server.group() == []


@pytest.mark.parametrize("with_plugin", [True, False])
def test_a_killed_server_leaves_no_engine(
    monkeypatch: pytest.MonkeyPatch, with_plugin: bool
) -> None:
    """Without softserve's plugin vLLM leaves its engine behind: if not, the plugin can go."""
    if not with_plugin:
        monkeypatch.setenv("VLLM_PLUGINS", "")
    with running() as server:
        server.wait_until_ready()
        engine = server.engine_process()

        server.send(signal.SIGKILL)
        server.process.wait()

        if with_plugin:
            wait_until(lambda: server.group() == [], PLENTY_SECONDS)
        else:
            with pytest.raises(TimeoutError):
                wait_until(lambda: engine not in server.group(), LONG_ENOUGH_SECONDS)
