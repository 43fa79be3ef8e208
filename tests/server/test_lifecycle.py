"""Start, drain and death of a real process. These tests end the server that they use."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_files import write_lora, write_soft_prompt
from tests.otlp import Receiver, attributes, receiving
from tests.server.peft_reference import HIDDEN_SIZE, SMOLLM2_MODULES
from tests.server.process import ServerProcess, is_free, running, wait_until
from tests.server.requests import OpenStream, adapter_form, add_adapter, generate

LONG = {"prompt": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True}
# An engine that is going to end by itself does so at once.
LONG_ENOUGH_SECONDS = 10.0


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
    assert is_free(server.url)


@contextmanager
def running_with_traces(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServerProcess]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    with running() as server:
        yield server


def assert_traced(receiver: Receiver, answer: dict[str, Any]) -> None:
    """The one request that succeeded has the engine's own phases; those that failed are errors."""
    of_requests = [each for each in receiver.spans if each.name == "POST /generate"]
    outcomes = Counter(attributes(each)["softserve.outcome"] for each in of_requests)
    assert outcomes == {"refused": 2, "success": 1, "failed": 1}
    (span,) = [each for each in of_requests if not each.status.code]
    phases = {each.name: each for each in receiver.spans if each.parent_span_id == span.span_id}
    assert list(phases) == ["admission", "tokenize", "queue", "prefill", "decode"]
    assert attributes(span)["gen_ai.usage.output_tokens"] == 5
    assert attributes(span)["softserve.request_id"] == answer["id"]
    nanoseconds = {
        name: each.end_time_unix_nano - each.start_time_unix_nano for name, each in phases.items()
    }
    assert nanoseconds["prefill"] > nanoseconds["queue"] >= 0
    whole = span.end_time_unix_nano - span.start_time_unix_nano
    assert 0 < nanoseconds["prefill"] + nanoseconds["decode"] <= whole


async def test_a_start_then_a_killed_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live at once, not ready until loaded; a dead engine answers everyone and ends the server.

    Of all that there are traces, sent before the process ends.
    """
    with receiving() as receiver, running_with_traces(receiver, monkeypatch) as server:
        server.wait_until_listening()
        async with server.async_client() as client:
            live = await client.get("/health/live")
            ready = await client.get("/health/ready")
            early = await client.post("/generate", json={"prompt": "Hi"})
            info = await client.get("/info")
            await asyncio.to_thread(server.wait_until_ready)
            ready_later = await client.get("/health/ready")
            generated = await client.post("/generate", json=LONG | {"max_new_tokens": 5})
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
        assert is_free(server.url)
        assert_traced(receiver, generated.json())


def test_a_signal_while_loading_ends_the_start() -> None:
    with running() as server:
        server.wait_until_listening()
        with server.client() as client:
            assert client.get("/health/live").status_code == 200

        server.send_to_group(signal.SIGINT)

        assert server.wait_for_exit() == 0


def test_a_killed_server_leaves_its_adapters_and_no_engine(tmp_path: Path) -> None:
    """Killed while an adapter is replaced: one of its versions is live, all else as it was.

    The sessions of a split too stay with their versions.
    """
    loras = [write_lora(tmp_path / str(seed), SMOLLM2_MODULES, seed=seed) for seed in range(2)]
    prompt = write_soft_prompt(tmp_path / "prompt", 8, HIDDEN_SIZE, scale=1.0)
    question = {"prompt": "Once upon a time", "max_new_tokens": 8}
    question |= {"adapter": "kept", "soft_prompt": "prompt"}
    with running(folder=tmp_path) as server, ThreadPoolExecutor() as executor:
        server.wait_until_ready()
        with server.client() as client:
            add_adapter(client, "kept", loras[0])
            add_adapter(client, "prompt", prompt)
            before = generate(client, **question)
            split(client, loras)
            dealt_before = dealt(client)
            replacing = executor.submit(keep_replacing, server, loras)
            time.sleep(1.0)

            server.send(signal.SIGKILL)
            server.wait_for_exit()
            versions = replacing.result()

    with running(folder=tmp_path) as server:
        server.wait_until_ready()
        with server.client() as client:
            after = generate(client, **question)
            replaced = client.get("/adapters/replaced").json()

            assert after["completions"] == before["completions"]
            assert [after[field] for field in ("adapter", "soft_prompt")] == [
                before[field] for field in ("adapter", "soft_prompt")
            ]
            assert dealt(client) == dealt_before
            assert replaced["live"] in versions
            assert ask_version(client, "replaced") == replaced["live"]


def keep_replacing(server: ServerProcess, folders: list[Path]) -> set[str]:
    """Replace an adapter until the server is gone; the versions that were live."""
    versions = set()
    with server.client() as client, suppress(httpx.TransportError):
        for folder in cycle(folders):
            versions.add(add_adapter(client, "replaced", folder))
    assert len(versions) == len(folders), "it was killed too early"
    return versions


def split(client: httpx.Client, folders: list[Path]) -> None:
    """An adapter of which two versions share the sessions."""
    live = add_adapter(client, "split", folders[0])
    beside = client.put("/adapters/split?live=false", files=adapter_form(folders[1])).json()
    weights = {live: 1, beside["versions"][0]["version"]: 1}
    body = {"versions": weights, "sticky": "session"}
    client.post("/adapters/split/split", json=body).raise_for_status()


def dealt(client: httpx.Client) -> list[str]:
    """The versions that twelve sessions get."""
    sessions = [{"x-softserve-session": f"session-{number}"} for number in range(12)]
    return [ask_version(client, "split", headers) for headers in sessions]


def ask_version(client: httpx.Client, name: str, headers: dict[str, str] | None = None) -> str:
    question = {"prompt": "Hi", "max_new_tokens": 1, "adapter": name}
    response = client.post("/generate", json=question, headers=headers)
    version: str = response.json()["adapter"]["version"]
    return version


def test_vllm_alone_leaves_its_engine_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, vLLM is cured, and app/engine/plugin/lifetime.py can go."""
    monkeypatch.setenv("VLLM_PLUGINS", "")
    with running() as server:
        server.wait_until_ready()
        engine = server.engine_process()

        server.send(signal.SIGKILL)
        server.process.wait()

        with pytest.raises(TimeoutError):
            wait_until(lambda: engine not in server.group(), LONG_ENOUGH_SECONDS)
