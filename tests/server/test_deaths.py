"""The engine is killed under load, and stopped for ever: everybody is told, and a restart serves.

test_lifecycle.py has the death of a server; test_store_kills.py has many.
"""

import asyncio
import os
import signal
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_files import write_lora, write_soft_prompt
from tests.server.process import ServerProcess, is_free, running
from tests.server.requests import OpenStream, adapter_form, add_adapter, generate
from tests.server.tiny_models import HIDDEN_SIZE, LLAMA_MODULES, SMALL

NUM_OPEN = 32
DRAIN_TIMEOUT_SECONDS = 1.0
QUESTION = {"prompt": "Once", "adapter": "lora", "soft_prompt": "soft", "max_new_tokens": 20}
ENDLESS = QUESTION | {"max_new_tokens": 4000, "ignore_eos": True}


async def test_a_killed_engine_then_one_that_is_stopped_for_ever(
    tiny_model: Path, tmp_path: Path
) -> None:
    loras = [
        write_lora(tmp_path / f"lora-{seed}", LLAMA_MODULES, seed=seed, scale=1.0)
        for seed in range(2)
    ]
    soft_prompt = write_soft_prompt(tmp_path / "soft-prompt", 8, HIDDEN_SIZE, scale=1.0)
    flags = (
        *SMALL,
        *("--model", str(tiny_model)),
        *("--drain-timeout-seconds", str(DRAIN_TIMEOUT_SECONDS)),
    )
    with running(*flags, folder=tmp_path) as server:
        with server.wait_until_ready().client() as client:
            add_adapter(client, "lora", loras[0])
            add_adapter(client, "soft", soft_prompt)
            before = answer_of(client)
        await kill_the_engine_under_load(server, loras)

    with running(*flags, folder=tmp_path) as server:
        with server.wait_until_ready().client() as client:
            after = answer_of(client)
        await end_with_a_stopped_engine(server)

    assert after == before


async def kill_the_engine_under_load(server: ServerProcess, loras: list[Path]) -> None:
    """Every open request is told, an upload too, and then the server ends."""
    async with server.async_client() as client:
        answers = [
            asyncio.create_task(client.post("/generate", json=ENDLESS)) for _ in range(NUM_OPEN)
        ]
        streams = [OpenStream(client, **ENDLESS) for _ in range(NUM_OPEN)]
        uploads = asyncio.create_task(upload_until_refused(client, loras))
        await asyncio.gather(*(stream.started.wait() for stream in streams))

        os.kill(server.engine_process(), signal.SIGKILL)

        refusals = [await uploads, *await asyncio.gather(*answers)]
        for stream in streams:
            events = (await stream.finished).events
            assert events[-1]["error"]["type"] == "engine_died"
    code = await asyncio.to_thread(server.wait_for_exit)

    for refusal in refusals:
        assert refusal.status_code == 503
        assert refusal.json()["error"]["type"] == "engine_died"
    assert code == 1
    assert is_free(server.url)


async def end_with_a_stopped_engine(server: ServerProcess) -> None:
    """A drain that waits for an engine that never answers ends all the same."""
    async with server.async_client() as client:
        stream = OpenStream(client, **ENDLESS)
        await stream.started.wait()
        os.kill(server.engine_process(), signal.SIGSTOP)

        server.send(signal.SIGTERM)

        code = await asyncio.to_thread(server.wait_for_exit)
        with pytest.raises(httpx.RemoteProtocolError):
            await stream.finished

    assert code == 0
    assert is_free(server.url)


async def upload_until_refused(client: httpx.AsyncClient, loras: list[Path]) -> httpx.Response:
    for lora in cycle(loras):
        response = await client.put("/adapters/replaced", files=adapter_form(lora))
        if response.status_code != 200:
            break
    return response


def answer_of(client: httpx.Client) -> dict[str, Any]:
    """A completion and the versions that it was made with."""
    answer = generate(client, **QUESTION)
    return {field: answer[field] for field in ("completions", "adapter", "soft_prompt")}
