"""A request's times begin at its admission, wherever they are told."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog

from tests.adapter_files import as_files, lora_config, lora_tensors
from tests.api.support import Served, serving, until
from tests.fake_engine import ARCHITECTURE, FakeEngine

Events = list[structlog.typing.EventDict]

TTFT = "softserve_time_to_first_token_seconds"
DURATION = "softserve_request_duration_seconds"
LABELLED = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
    "labels": ["good", "bad"],
}


class Clock:
    """In place of `time.perf_counter`: it stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class SlowEngine(FakeEngine):
    """Every step takes a time of its own."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self._clock.seconds += 5.0
        return await super().tokenize(text, add_special_tokens=add_special_tokens)

    async def _go_on(
        self, num_chunks: int, permission: asyncio.Event, aborted: asyncio.Event | None = None
    ) -> None:
        self._clock.seconds += 0.25
        await super()._go_on(num_chunks, permission, aborted)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture
def engine(clock: Clock) -> FakeEngine:
    return SlowEngine(clock)


@pytest.fixture
async def served(engine: FakeEngine) -> AsyncIterator[Served]:
    # Of two adapters, one has to be loaded when it is asked for.
    async with serving(engine, max_loras=1, max_loaded_adapters=1) as ready:
        yield ready


async def _publish(served: Served, name: str, rank: int) -> None:
    files = as_files(lora_config(rank), lora_tensors(ARCHITECTURE.modules, rank))
    parts = [("file", file) for file in files]
    response = await served.client.put(f"/adapters/{name}", files=parts)
    assert response.status_code == 200, response.text


async def _times(served: Served) -> tuple[float, float]:
    return await served.metric(f"{TTFT}_sum"), await served.metric(f"{DURATION}_sum")


def _timings(response: httpx.Response) -> dict[str, float]:
    """Of the one answer, or of the event that ends a stream's completion."""
    if response.headers["content-type"] == "application/json":
        answer = response.json()
    else:
        answer = json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))
    timings: dict[str, float] = answer["timings"]
    return timings


@pytest.mark.parametrize("stream", [False, True])
async def test_tokenization_counts(served: Served, stream: bool) -> None:
    response = await served.generate("a", stream=stream)
    assert await _times(served) == (5.25, 5.5)
    assert _timings(response) == {"queue": 0.0, "ttft": 5250.0, "total": 5500.0}


async def test_the_load_of_an_adapter_counts(
    served: Served, engine: FakeEngine, clock: Clock
) -> None:
    await _publish(served, "one", rank=2)
    await _publish(served, "other", rank=4)
    engine.hold_loads()
    num_loads = len(engine.loads)
    asking = asyncio.create_task(served.generate("a", adapter="one", max_new_tokens=1))
    await until(lambda: len(engine.loads) == num_loads + 1)
    clock.seconds += 10.0
    engine.release_loads()
    response = await asking
    assert await _times(served) == (15.25, 15.25)
    assert _timings(response) == {"queue": 0.0, "ttft": 15250.0, "total": 15250.0}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_scores_of_labels_count(served: Served, stream: bool) -> None:
    body = {"template": LABELLED, "inputs": {"text": "a"}, "max_new_tokens": 1, "stream": stream}
    response = await served.client.post("/icl/generate", json=body)
    assert response.status_code == 200, response.text
    # The prompt, and each label alone and behind the prompt; the scores of "good" and "bad" behind
    # the space that both begin with; the token.
    spent = 5 * 5.0 + 6 * 0.25 + 0.25
    assert await _times(served) == (spent, spent)
    assert _timings(response) == {"queue": 0.0, "ttft": spent * 1000, "total": spent * 1000}


async def test_what_generates_nothing_has_a_duration(served: Served) -> None:
    await served.inspect("a")
    assert await _times(served) == (0.0, 5.25)
    assert await served.metric(f"{TTFT}_count") == 0


def _ended(events: Events) -> dict[str, Any]:
    (ended,) = [event for event in events if event["event"] == "request ended"]
    names = ("prompt_tokens", "completion_tokens", "ttft_ms")
    return {name: ended[name] for name in names if name in ended}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_log_tells_what_was_generated(
    served: Served, events: Events, stream: bool
) -> None:
    events.clear()
    await served.generate("ab", stream=stream)
    assert _ended(events) == {"prompt_tokens": 2, "completion_tokens": 3, "ttft_ms": 5250.0}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_log_tells_how_far_a_failure_came(
    served: Served, engine: FakeEngine, events: Events, stream: bool
) -> None:
    events.clear()
    engine.fail(RuntimeError("no reason"), at_chunk=2)
    await served.generate("hello", stream=stream)
    assert _ended(events) == {"prompt_tokens": 5, "completion_tokens": 2, "ttft_ms": 5250.0}


async def test_the_log_tells_nothing_where_nothing_was_generated(
    served: Served, events: Events
) -> None:
    events.clear()
    await served.generate("a" * 300)
    assert _ended(events) == {}
