"""Starting, ready, full, draining, dead: what each state answers."""

import asyncio
from typing import Any

import httpx
import pytest
import structlog

from app.access.caller import ANONYMOUS
from app.errors import (
    EngineDied,
    EngineStarting,
    ModelNotFound,
    ServerDraining,
    ServerFull,
    SoftserveError,
    StartError,
    StoreUnavailable,
)
from app.serving import lifecycle, watchdog
from app.serving.admission import Demand
from app.serving.warming import Warming
from app.templates.registry import TemplateRegistry
from app.versions.watcher import FolderWatcher
from tests.api.support import (
    Served,
    error_of,
    occupied,
    serving,
    starting,
    until,
    until_failed,
    until_in_flight,
    until_ready,
    until_waiting,
)
from tests.fake_engine import FakeEngine

SECRET = "the password is swordfish"  # noqa: S105


@pytest.fixture(autouse=True)
def _watch_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "WATCH_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(watchdog, "PING_INTERVAL_SECONDS", 0)


async def _assert_refuses(served: Served, type: str, retry_after: str) -> None:
    refusals: list[httpx.Response] = [
        await served.generate(),
        await served.generate(stream=True),
        await served.inspect(),
        await served.get("/health/ready"),
    ]
    for response in refusals:
        assert error_of(response) == (503, type, None)
        assert response.headers["retry-after"] == retry_after
    live = await served.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "live"})


async def test_starting_then_ready(engine: FakeEngine) -> None:
    engine.hold_start()
    async with starting(engine) as served:
        await _assert_refuses(served, "engine_starting", "5")
        assert error_of(await served.get("/info")) == (503, "engine_starting", None)
        engine.release_start()
        await until_ready(served)
        ready = await served.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert (await served.generate()).status_code == 200
    assert engine.num_stops == 1
    assert served.failures == []


async def test_an_engine_that_cannot_start(engine: FakeEngine) -> None:
    engine.start_failure = ModelNotFound("there is no folder /nowhere")
    async with starting(engine) as served:
        await until_failed(served)
        assert served.failures == [engine.start_failure]
        await _assert_refuses(served, "engine_starting", "5")


async def test_an_engine_that_fails_to_start_unexpectedly(engine: FakeEngine) -> None:
    engine.start_failure = PermissionError("config.json")
    async with starting(engine) as served:
        await until_failed(served)
        (failure,) = served.failures
        assert isinstance(failure, StartError)


async def _fail(*_: Any) -> None:
    raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (FolderWatcher, "run"),
        (FolderWatcher, "catch_up"),
        (TemplateRegistry, "open"),
        (Warming, "warm_all"),
    ],
)
async def test_whatever_fails_before_ready_ends_the_start(
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    events: list[structlog.typing.EventDict],
    owner: type,
    method: str,
) -> None:
    monkeypatch.setattr(owner, method, _fail)
    async with starting(engine) as served:
        await until_failed(served)
        _assert_told(served.failures, events, StartError)
        await _assert_refuses(served, "engine_starting", "5")


async def test_a_failure_of_what_follows_the_start_ends_it(
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    events: list[structlog.typing.EventDict],
) -> None:
    def fail() -> None:
        raise RuntimeError(SECRET)

    engine.hold_start()
    async with starting(engine) as served:
        monkeypatch.setattr(served.lifecycle, "_on_ready", fail)
        engine.release_start()
        await until_failed(served)
        _assert_told(served.failures, events, StartError)


async def test_a_start_on_a_full_disk_says_so(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(failing: object) -> None:
        raise StoreUnavailable("the template store cannot be written: free some disk space")

    monkeypatch.setattr(TemplateRegistry, "open", fail)
    async with starting(engine) as served:
        await until_failed(served)
        (failure,) = served.failures
        assert isinstance(failure, StartError)
        assert failure.message == "the template store cannot be written: free some disk space"


async def test_a_watcher_that_fails_ends_the_server(
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    events: list[structlog.typing.EventDict],
) -> None:
    may_fail = asyncio.Event()

    async def fail(failing: object) -> None:
        await may_fail.wait()
        raise RuntimeError(SECRET)

    async def catch_up(*_: object) -> None:
        pass

    monkeypatch.setattr(FolderWatcher, "run", fail)
    monkeypatch.setattr(FolderWatcher, "catch_up", catch_up)
    async with serving(engine) as served:
        with served.admission.admit(ANONYMOUS, Demand(1, 1, 1)):
            may_fail.set()
            while served.admission.refusal is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert served.failures == []
        await until_failed(served)
        _assert_told(served.failures, events, ServerDraining)
        await _assert_refuses(served, "server_draining", "5")


def _assert_told(
    failures: list[SoftserveError],
    events: list[structlog.typing.EventDict],
    kind: type[SoftserveError],
) -> None:
    """One sentence without a detail of what failed; the log has those."""
    assert [type(failure) for failure in failures] == [kind]
    assert "swordfish" not in failures[0].message
    (told,) = [event for event in events if event["log_level"] == "error"]
    assert SECRET in str(told["exc_info"])


async def test_info(served: Served) -> None:
    assert (await served.get("/info")).json() == {
        "model": "echo",
        "device": "none",
        "dtype": "float32",
        "weights": {
            "precision": "fp32",
            "made": "in this process",
            "linear_bytes": 256,
            "other_bytes": 4112,
        },
        "kv_cache_bytes": 1024,
        "context_window": 256,
        "encoder_window": None,
        "forced_bos_token_id": None,
        "vocabulary_size": 257,
        "max_running_sequences": 8,
        "pauses_completions": True,
        "lora_kernel": None,
        "schedules_by_priority": False,
        "engine": "fake",
        "engine_version": "1",
        "server_version": "0.1.0",
        "limits": {
            "max_prompts": 32,
            "max_n": 16,
            "max_stop_strings": 8,
            "max_stop_length": 128,
            "max_body_bytes": 1_048_576,
            "max_sequences_in_flight": 256,
            "max_messages": 256,
            "max_structure_length": 16_384,
            "max_virtual_tokens": 256,
            "max_lora_rank": 32,
            "max_adapter_bytes": 1_073_741_824,
            "max_waiting_prompt_tokens": 131_072,
            "max_timeout_seconds": 3600.0,
        },
    }


async def test_full(engine: FakeEngine) -> None:
    async with serving(engine, max_sequences_in_flight=3) as served:
        engine.hold()
        running = asyncio.create_task(served.generate(["a", "b"]))
        await until_in_flight(served, 2)
        refused = await served.generate(["c", "d"])
        assert error_of(refused) == (503, "server_full", None)
        assert refused.headers["retry-after"] == str(ServerFull.retry_after_seconds)
        assert (await served.get("/health/ready")).status_code == 200, "full is not unready"
        fitting = asyncio.create_task(served.inspect("e"))
        await until_in_flight(served, 3)
        engine.release()
        assert (await running).status_code == (await fitting).status_code == 200
        assert (await served.generate(["c", "d", "e"])).status_code == 200


async def test_draining_lets_running_requests_finish(served: Served, engine: FakeEngine) -> None:
    engine.hold()
    running = asyncio.create_task(served.generate("hello"))
    await until_in_flight(served, 1)
    draining = asyncio.create_task(served.lifecycle.drain(timeout_seconds=600))
    await asyncio.sleep(0)
    await _assert_refuses(served, "server_draining", "5")
    assert not draining.done()
    engine.release()
    assert (await running).json()["completions"][0]["text"] == "hello"
    await draining
    assert (await served.get("/info")).status_code == 200


async def test_draining_aborts_what_outlasts_it(served: Served, engine: FakeEngine) -> None:
    engine.hold()
    running = asyncio.create_task(served.generate(["a", "b"]))
    await until(lambda: len(engine.open) == 2)
    await served.lifecycle.drain(timeout_seconds=0)
    completions = (await running).json()["completions"]
    assert [completion["finish_reason"] for completion in completions] == ["abort", "abort"]


async def test_draining_refuses_what_still_waits_for_its_turn(engine: FakeEngine) -> None:
    async with occupied(engine) as (served, running):
        waiting = asyncio.create_task(served.generate("second"))
        await until_waiting(served)
        await served.lifecycle.drain(timeout_seconds=0)
        assert (await running).json()["completions"][0]["finish_reason"] == "abort"
        assert error_of(await waiting) == (503, "server_draining", None)


async def test_draining_an_idle_server_is_over_at_once(served: Served) -> None:
    await served.lifecycle.drain(timeout_seconds=600)
    await _assert_refuses(served, "server_draining", "5")


async def test_an_engine_that_does_not_answer(engine: FakeEngine) -> None:
    async with serving(engine, engine_timeout_seconds=0.01) as served:
        engine.stall()
        engine.hold()
        running = asyncio.create_task(served.generate("hello"))
        await until_in_flight(served, 1)
        await until(lambda: served.admission.refusal is not None)
        await _assert_refuses(served, "engine_stalled", "5")
        assert not running.done()
        engine.answer()
        engine.release()
        await until_ready(served)
        assert (await running).status_code == (await served.generate()).status_code == 200
    assert served.failures == []


async def test_an_engine_that_does_not_answer_and_dies(engine: FakeEngine) -> None:
    async with serving(engine, engine_timeout_seconds=0.01) as served:
        engine.stall()
        engine.hold()
        running = asyncio.create_task(served.generate("hello"))
        await until(lambda: served.admission.refusal is not None)
        engine.die()
        assert error_of(await running) == (503, "engine_died", None)
        await until_failed(served)
        assert [type(failure) for failure in served.failures] == [EngineDied]


async def test_draining_an_engine_that_does_not_answer(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drain ends, and an answer that comes late does not open the server again."""
    monkeypatch.setattr(lifecycle, "ANSWER_TIMEOUT_SECONDS", 0.01)
    async with serving(engine, engine_timeout_seconds=0.01) as served:
        engine.stall()
        engine.hold()
        running = asyncio.create_task(served.generate("hello"))
        await until(lambda: served.admission.refusal is not None)
        await served.lifecycle.drain(timeout_seconds=0)
        assert not running.done()
        engine.answer()
        engine.release()
        assert (await running).status_code == 200
        await _assert_refuses(served, "server_draining", "5")


async def test_draining_before_ready(engine: FakeEngine) -> None:
    engine.hold_start()
    async with starting(engine) as served:
        await served.lifecycle.drain(timeout_seconds=600)
        assert error_of(await served.get("/info"))[0] == 503


async def test_a_dead_engine(served: Served, engine: FakeEngine) -> None:
    engine.hold()
    running = asyncio.create_task(served.generate(["a", "b"]))
    inspecting = asyncio.create_task(served.inspect("c"))
    await until_in_flight(served, 3)
    engine.die()
    for response in (await running, await inspecting):
        assert error_of(response) == (503, "engine_died", None)
        assert response.headers["retry-after"] == "30"
    await until_failed(served)
    await _assert_refuses(served, "engine_died", "30")
    assert [type(failure) for failure in served.failures] == [EngineDied]


async def test_open_requests_are_answered_before_a_death_is_told(
    served: Served, engine: FakeEngine
) -> None:
    with served.admission.admit(ANONYMOUS, Demand(1, 1, 1)):
        engine.die()
        while served.admission.refusal is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert served.failures == []
    await until_failed(served)


@pytest.mark.parametrize("at_chunk", [0, 2])
@pytest.mark.parametrize("path", ["generate", "inspect"])
async def test_an_unexpected_exception_tells_nothing(
    served: Served, engine: FakeEngine, path: str, at_chunk: int
) -> None:
    engine.fail(RuntimeError(SECRET), at_chunk=0 if path == "inspect" else at_chunk)
    response = await (served.generate() if path == "generate" else served.inspect())
    assert error_of(response) == (500, "internal_error", None)
    assert "swordfish" not in response.text
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"]
    assert await served.requests(path, "failed") == 1
    assert served.admission.sequences_in_flight == 0


async def test_one_prompt_failing_closes_the_others(served: Served, engine: FakeEngine) -> None:
    engine.fail(RuntimeError(SECRET), at_chunk=2)
    assert (await served.generate(["first", "second"])).status_code == 500
    assert engine.open == []
    assert len(engine.left_early) == 2


async def test_starting_is_the_first_state(engine: FakeEngine) -> None:
    engine.hold_start()
    async with starting(engine) as served:
        assert isinstance(served.admission.refusal, EngineStarting)
