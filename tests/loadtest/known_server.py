"""A small server whose TTFT and ITL are known: it sleeps, and writes down when it sent what.

It answers what a load test asks of softserve. Adapters misbehave by their names:

- `busy` refuses every other request with Retry-After, with 429 and with 503 in turn;
- `swapped` names a version that is not live;
- `drifting` says another text from the second time on;
- `broken` ends its stream after the first text, and `cut` its connection.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from softserve.schema.adapters import AdapterList, AdapterOut, VersionOut
from softserve.schema.controls import Sampling
from softserve.schema.generation import (
    AdapterUsed,
    CompletionOut,
    GenerateAnswer,
    TimingsOut,
    UsageOut,
)
from softserve.schema.server import Limits, ModelInfo, WeightsOut
from softserve.schema.templates import TemplateList
from tests.threaded import app_in_thread

RETRY_AFTER_SECONDS = 1
VERSION, OTHER_VERSION = "a" * 64, "b" * 64
ADAPTERS = ("broken", "busy", "cut", "drifting", "right", "swapped")
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Sent:
    """A request: when it came, and when each text left, in seconds of `time.perf_counter`."""

    adapter: str | None
    came_at: float
    texts_at: list[float] = field(default_factory=list)
    is_refused: bool = False


class KnownServer:
    """What it has been asked for, and what it did."""

    def __init__(self, ttft_seconds: float, itl_seconds: float) -> None:
        self.url = ""
        self.ttft_seconds = ttft_seconds
        self.itl_seconds = itl_seconds
        self.requests: list[Sent] = []
        self.authorizations: set[str | None] = set()

    def of(self, adapter: str) -> list[Sent]:
        return [each for each in self.requests if each.adapter == adapter]

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        self.authorizations.add(request.headers.get("authorization"))
        sent = Sent(body.get("adapter"), time.perf_counter())
        num_earlier = len(self.of(sent.adapter)) if sent.adapter else 0
        self.requests.append(sent)
        token = "?" if sent.adapter == "drifting" and num_earlier else "."
        if not body.get("stream"):
            await asyncio.sleep(self.ttft_seconds)
            return JSONResponse(_answer(body, token * body["max_new_tokens"]))
        if sent.adapter == "busy" and num_earlier % 2:
            sent.is_refused = True
            return _refusal(429 if num_earlier % 4 == 1 else 503)
        return StreamingResponse(self._events(body, sent, token), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any], sent: Sent, token: str) -> AsyncIterator[bytes]:
        for number in range(body["max_new_tokens"]):
            await asyncio.sleep(self.itl_seconds if number else self.ttft_seconds)
            sent.texts_at.append(time.perf_counter())
            yield _event({"prompt_index": 0, "index": 0, "text": token})
            if sent.adapter == "broken":
                return
            if sent.adapter == "cut":
                raise ConnectionAbortedError("as asked for")
        ending = _answer(body, "")
        (completion,) = ending.pop("completions")
        yield _event(completion | ending)
        yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _refusal(status: int) -> Response:
    error = {"type": "server_full", "message": "try again", "param": None}
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
    return JSONResponse({"error": error}, status, headers)


def _answer(body: dict[str, Any], text: str) -> dict[str, Any]:
    name = body.get("adapter")
    version = OTHER_VERSION if name == "swapped" else VERSION
    num_tokens = body["max_new_tokens"]
    return GenerateAnswer(
        id="1",
        model="known",
        completions=[CompletionOut(prompt_index=0, index=0, text=text, finish_reason="length")],
        sampling=Sampling(),
        adapter=AdapterUsed(name=name, version=version) if name else None,
        usage=UsageOut(
            prompt_tokens=1, virtual_tokens=0, completion_tokens=num_tokens, cached_tokens=0
        ),
        timings=TimingsOut(queue=0.0, ttft=0.0, total=0.0),
    ).model_dump(mode="json", exclude_none=True)


async def _info(request: Request) -> Response:
    info = ModelInfo(
        model="known",
        device="none",
        dtype="float32",
        weights=WeightsOut(precision="fp32", made="", linear_bytes=0, other_bytes=0),
        kv_cache_bytes=0,
        context_window=4096,
        vocabulary_size=1,
        max_running_sequences=1,
        schedules_by_priority=False,
        pauses_completions=False,
        engine="none",
        engine_version="1",
        server_version="1",
        limits=Limits(),
    )
    return JSONResponse(info.model_dump(mode="json"))


async def _adapters(request: Request) -> Response:
    adapters = AdapterList(adapters=[_adapter(name) for name in ADAPTERS])
    return JSONResponse(adapters.model_dump(mode="json"))


def _adapter(name: str) -> AdapterOut:
    version = VersionOut(
        version=VERSION,
        live=True,
        created_at=STARTED,
        source="upload",
        size_bytes=1,
        base_model=None,
        rank=8,
        target_modules=[],
        virtual_tokens=None,
        loaded=True,
        requests=0,
    )
    return AdapterOut(
        name=name, live=VERSION, rejected=None, kind="lora", requests=0, versions=[version]
    )


async def _templates(request: Request) -> Response:
    return JSONResponse(TemplateList(templates=[]).model_dump(mode="json"))


@contextmanager
def known_server(ttft_seconds: float = 0.1, itl_seconds: float = 0.03) -> Iterator[KnownServer]:
    """It serves meanwhile, in a thread."""
    known = KnownServer(ttft_seconds, itl_seconds)
    app = Starlette(
        routes=[
            Route("/generate", known.generate, methods=["POST"]),
            Route("/info", _info),
            Route("/adapters", _adapters),
            Route("/icl/templates", _templates),
        ]
    )
    with app_in_thread(app) as known.url:
        yield known
