"""The whole app in this process: real wiring, middleware and lifespan around a fake engine."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from app.adapters.effect import PROBE_TEXT
from app.errors import SoftserveError
from app.http.application import create_app
from app.serving.admission import Admission
from app.serving.lifecycle import Lifecycle
from app.settings import Settings
from softserve.schema.fields import SHOWN_DIGITS
from tests.adapter_files import (
    Files,
    as_files,
    lora_config,
    lora_tensors,
    soft_prompt_config,
    soft_prompt_tensors,
)
from tests.fake_engine import ARCHITECTURE, HIDDEN_SIZE, FakeEngine, next_token_logprobs

TIMEOUT_SECONDS = 20.0

_BASE = next_token_logprobs(ord(PROBE_TEXT[0])).astype(float)
_ADAPTED = next_token_logprobs(ord("<")).astype(float)
# Of every adapter that has an effect: it has the fake engine begin with its mark.
PROBE_KL_DIVERGENCE = float(np.sum(np.exp(_BASE) * (_BASE - _ADAPTED)))


class Served:
    """A client of one running app, and the app's inside."""

    def __init__(
        self,
        app: FastAPI,
        client: httpx.AsyncClient,
        failures: list[SoftserveError],
        stops: list[None],
    ) -> None:
        self.app = app
        self.client = client
        self.failures = failures
        # One for each time that the app asked to be stopped.
        self.stops = stops

    @property
    def admission(self) -> Admission:
        admission: Admission = self.app.state.service.admission
        return admission

    @property
    def lifecycle(self) -> Lifecycle:
        lifecycle: Lifecycle = self.app.state.lifecycle
        return lifecycle

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def generate(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return await self.client.post("/generate", json={"prompt": prompt, **fields})

    async def inspect(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return await self.client.post("/inspect", json={"prompt": prompt, **fields})

    async def post_bytes(self, path: str, body: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return await self.client.post(path, content=body, headers=headers)

    async def metric(self, sample: str) -> float:
        """The value of a metric, by name and labels as the exposition writes them."""
        lines = (await self.get("/metrics")).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(sample)), 0.0)

    async def requests(self, endpoint: str, outcome: str) -> float:
        return await self.metric(
            f'softserve_requests_total{{endpoint="{endpoint}",outcome="{outcome}"}}'
        )


async def add_lora(served: Served, name: str, seed: int = 0) -> str:
    """The new live version, in the digits that are shown of it."""
    tensors = lora_tensors(ARCHITECTURE.modules, 4, seed)
    return await _add(served, name, as_files(lora_config(4), tensors))


async def add_soft_prompt(served: Served, name: str) -> str:
    """The same, of a soft prompt with 20 virtual tokens."""
    tensors = soft_prompt_tensors(20, HIDDEN_SIZE, 0)
    return await _add(served, name, as_files(soft_prompt_config(20, HIDDEN_SIZE), tensors))


async def _add(served: Served, name: str, files: Files) -> str:
    parts = [("file", file) for file in files]
    response = await served.client.put(f"/adapters/{name}", files=parts)
    assert response.status_code == 200, response.text
    return str(response.json()["live"])[:SHOWN_DIGITS]


@asynccontextmanager
async def starting(engine: FakeEngine, **settings: Any) -> AsyncIterator[Served]:
    """A served app, whether its engine has started or not.

    Unless `settings` say otherwise, its store is its own and its watched folders are missing.
    """
    failures: list[SoftserveError] = []
    stops: list[None] = []
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, Any] = {
            "adapter_store": Path(folder, "store"),
            "adapter_dir": Path(folder, "adapters"),
            "template_dir": Path(folder, "templates"),
            "trusted_host": ("softserve",),
        }
        app = create_app(
            Settings(**own | settings), engine, failures.append, lambda: stops.append(None)
        )
        async with app.router.lifespan_context(app), client_of(app) as client:
            yield Served(app, client, failures, stops)


def client_of(app: FastAPI, host: str = "127.0.0.1") -> httpx.AsyncClient:
    """A client on the machine `host`."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(host, 123))
    return httpx.AsyncClient(transport=transport, base_url="http://softserve")


@asynccontextmanager
async def serving(engine: FakeEngine | None = None, **settings: Any) -> AsyncIterator[Served]:
    """A served app that is ready."""
    async with starting(engine or FakeEngine(), **settings) as served:
        await until_ready(served)
        yield served


@asynccontextmanager
async def occupied(
    engine: FakeEngine,
) -> AsyncIterator[tuple[Served, asyncio.Task[httpx.Response]]]:
    """A served app with one place at the engine, and the request that holds it."""
    async with serving(engine, max_running_sequences=1) as served:
        engine.hold()
        running = asyncio.create_task(served.generate("a"))
        await until(lambda: len(engine.open) == 1)
        yield served, running


async def until_waiting(served: Served) -> None:
    """Until one completion waits for its turn at the engine."""
    await until(lambda: served.admission.places.num_waiting == 1)


async def until_ready(served: Served) -> None:
    await until(lambda: served.admission.refusal is None)


async def until_in_flight(served: Served, num_sequences: int) -> None:
    await until(lambda: served.admission.sequences_in_flight == num_sequences)


async def until_failed(served: Served) -> None:
    await until(lambda: bool(served.failures))


async def until(true: Callable[[], bool]) -> None:
    """Let other tasks run until it is true. A test that would wait for ever fails instead."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        # Most of it happens in this thread: only what happens in others is worth a pause.
        for _ in range(100):
            if true():
                return
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, type and param; asserts that the body is the one error body with a sentence."""
    body = response.json()
    assert list(body) == ["error"]
    # OpenAI's clients are told a code besides.
    assert body["error"].keys() - {"code"} == {"message", "param", "type"}
    assert body["error"]["message"]
    return response.status_code, body["error"]["type"], body["error"]["param"]
