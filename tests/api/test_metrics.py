"""GET /metrics: every request is counted once, under the outcome that it had."""

import asyncio

import pytest

from tests.api.support import Served, serving, until, until_in_flight
from tests.fake_engine import FakeEngine

OUTCOMES = ("success", "invalid", "refused", "aborted", "failed")


async def _outcomes(served: Served, endpoint: str = "generate") -> dict[str, float]:
    counts = {outcome: await served.requests(endpoint, outcome) for outcome in OUTCOMES}
    return {outcome: count for outcome, count in counts.items() if count}


async def test_prometheus_text(served: Served) -> None:
    response = await served.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "# HELP softserve_requests_in_flight Admitted requests.\n" in response.text
    assert "# TYPE softserve_time_to_first_token_seconds histogram\n" in response.text
    assert "process_cpu_seconds_total" in response.text, "the global registry is served beside"


@pytest.mark.parametrize("stream", [False, True])
async def test_success_and_tokens(served: Served, stream: bool) -> None:
    await served.generate(["ab", "c"], stream=stream)
    assert await _outcomes(served) == {"success": 1}
    assert await served.metric("softserve_prompt_tokens_total") == 3
    assert await served.metric("softserve_completion_tokens_total") == 5
    assert await served.metric("softserve_cached_tokens_total") == 0
    assert await served.metric("softserve_time_to_first_token_seconds_count") == 1
    assert await served.metric("softserve_inter_token_latency_seconds_count") == 3
    assert await served.metric("softserve_request_duration_seconds_count") == 1


async def test_inspect_is_counted_apart(served: Served) -> None:
    await served.inspect()
    assert await _outcomes(served, "inspect") == {"success": 1}
    assert await _outcomes(served, "generate") == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"prompt": "a" * 300},
        {"prompt": ["a"] * 33},
        {"temperature": 0, "top_k": 3},
        {"system": "alone"},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_invalid(served: Served, fields: dict[str, object], stream: bool) -> None:
    response = await served.generate(**{"prompt": "a", "stream": stream, **fields})
    assert response.status_code == 422
    assert await _outcomes(served) == {"invalid": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b'{"prompt": "\xff"}',
    ],
)
async def test_not_json_is_invalid(served: Served, body: bytes) -> None:
    assert (await served.post_bytes("/generate", body)).status_code == 400
    assert await _outcomes(served) == {"invalid": 1}


async def test_refused() -> None:
    engine = FakeEngine()
    async with serving(engine, max_sequences_in_flight=1) as served:
        engine.hold()
        running = asyncio.create_task(served.generate())
        await until_in_flight(served, 1)
        await served.generate()
        assert await _outcomes(served) == {"refused": 1}
        engine.release()
        await running
        assert await _outcomes(served) == {"refused": 1, "success": 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at_chunk", [0, 2])
async def test_failed(served: Served, engine: FakeEngine, at_chunk: int, stream: bool) -> None:
    engine.fail(RuntimeError("no reason"), at_chunk=at_chunk)
    await served.generate(stream=stream)
    assert await _outcomes(served) == {"failed": 1}


async def test_aborted(served: Served, engine: FakeEngine) -> None:
    engine.hold()
    leaving = asyncio.create_task(served.generate())
    await until(lambda: len(engine.open) == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await until_in_flight(served, 0)
    assert await _outcomes(served) == {"aborted": 1}


async def test_in_flight_while_running(served: Served, engine: FakeEngine) -> None:
    async def in_flight() -> tuple[float, float]:
        return (
            await served.metric("softserve_requests_in_flight"),
            await served.metric("softserve_sequences_in_flight"),
        )

    engine.hold()
    running = asyncio.create_task(served.generate(["a", "b"], n=3, temperature=1))
    await until_in_flight(served, 6)
    assert await in_flight() == (1, 6)
    engine.release()
    await running
    assert await in_flight() == (0, 0)


async def test_two_apps_count_apart() -> None:
    async with serving() as first, serving() as second:
        await first.generate()
        assert await _outcomes(first) == {"success": 1}
        assert await _outcomes(second) == {}
