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
from tests.fake_engine import FakeEngine, next_token_logprobs

TIMEOUT_SECONDS = 20.0

_BASE = next_token_logprobs(ord(PROBE_TEXT[0])).astype(float)
_ADAPTED = next_token_logprobs(ord("<")).astype(float)
# Of every adapter that has an effect: it has the fake engine begin with its mark.
PROBE_KL_DIVERGENCE = float(np.sum(np.exp(_BASE) * (_BASE - _ADAPTED)))


class Served:
    """A client of one running app, and the app's inside."""

    def __init__(
        self, app: FastAPI, client: httpx.AsyncClient, failures: list[SoftserveError]
    ) -> None:
        self.app = app
        self.client = client
        self.failures = failures

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


@asynccontextmanager
async def starting(engine: FakeEngine, **settings: Any) -> AsyncIterator[Served]:
    """A served app, whether its engine has started or not.

    Unless `settings` say otherwise, its store is its own and its watched folders are missing.
    """
    failures: list[SoftserveError] = []
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "adapter_store": Path(folder, "store"),
            "adapter_dir": Path(folder, "adapters"),
            "template_dir": Path(folder, "templates"),
        }
        app = create_app(Settings(**own | settings), engine, failures.append)
        async with app.router.lifespan_context(app), client_of(app) as client:
            yield Served(app, client, failures)


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
    assert sorted(body["error"]) == ["message", "param", "type"]
    assert body["error"]["message"]
    return response.status_code, body["error"]["type"], body["error"]["param"]
