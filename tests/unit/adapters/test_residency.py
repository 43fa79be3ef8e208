"""What the engine has in memory: no more than fits, and nothing is taken from who uses it."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from app.adapters.residency import Residency
from app.engine.protocol import AdapterFiles
from app.errors import AdapterRejected
from app.telemetry.metrics import Metrics
from softserve.schema.adapters import AdapterKind
from tests.fake_engine import FakeEngine
from tests.staged_versions import a_version, files_of

CAPACITY = 2


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def residency(engine: FakeEngine) -> Residency:
    return Residency(engine, CAPACITY, Metrics(max_names=10))


Use = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def use(residency: Residency, tmp_path: Path) -> Use:
    """Hold a version for a moment, or until an event."""

    async def use(
        text: str, until: asyncio.Event | None = None, kind: AdapterKind = "lora"
    ) -> None:
        async with residency.hold(files_of(tmp_path, text, kind)):
            assert residency.is_loaded(_digest(text))
            if until is not None:
                await until.wait()

    return use


def _digest(text: str) -> str:
    return a_version(text).digest


def _texts(digests: list[str]) -> str:
    texts = {_digest(text): text for text in "abcdefgh"}
    return "".join(texts[digest] for digest in digests)


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_loaded_when_asked_for_and_kept(engine: FakeEngine, use: Use) -> None:
    await use("a")
    await use("a")
    assert _texts(engine.loads) == "a"
    assert _texts(list(engine.loaded)) == "a"


async def test_all_who_ask_at_once_share_one_load(engine: FakeEngine, use: Use) -> None:
    await asyncio.gather(*(use("a") for _ in range(10)))
    assert _texts(engine.loads) == "a"


async def test_the_least_recently_used_goes_first(
    engine: FakeEngine, residency: Residency, use: Use
) -> None:
    for text in "abac":
        await use(text)
    assert _texts(engine.loads) == "abc"
    assert _texts(engine.unloads) == "b"
    assert [residency.is_loaded(_digest(text)) for text in "abc"] == [True, False, True]


async def test_soft_prompts_have_room_of_their_own(engine: FakeEngine, use: Use) -> None:
    for text in "ab":
        await use(text)
        await use(text.upper(), kind="soft_prompt")
    assert len(engine.loaded) == 2 * CAPACITY
    assert engine.unloads == []


async def test_who_finds_all_in_use_waits_for_the_first_to_end(
    engine: FakeEngine, use: Use
) -> None:
    ends = {text: asyncio.Event() for text in "ab"}
    async with asyncio.TaskGroup() as tasks:
        for text in "ab":
            tasks.create_task(use(text, ends[text]))
        await _settle()
        waiting = [tasks.create_task(use(text)) for text in "cd"]
        await _settle()
        assert not any(task.done() for task in waiting)
        ends["b"].set()
        await asyncio.gather(*waiting)
        ends["a"].set()
    assert _texts(engine.loads) == "abcd"
    assert _texts(engine.unloads) == "bc"


async def test_a_failed_load_is_told_to_all_and_not_remembered(
    engine: FakeEngine, residency: Residency, use: Use
) -> None:
    engine.reject(_digest("a"), "the engine has no room for it")
    failures = await asyncio.gather(*(use("a") for _ in range(3)), return_exceptions=True)
    assert [str(failure) for failure in failures] == ["the engine has no room for it"] * 3
    assert not residency.is_loaded(_digest("a"))
    engine.rejected.clear()
    for text in "abcab":
        await use(text)
    assert len(engine.loaded) == CAPACITY


async def test_a_failed_load_leaves_its_room(engine: FakeEngine, use: Use) -> None:
    for text in "abcd":
        engine.reject(_digest(text), "no")
        with pytest.raises(AdapterRejected):
            await use(text)
    for text in "ef":
        await use(text)
    assert engine.unloads == []


async def test_retired_unloads_at_once_when_unused(
    engine: FakeEngine, residency: Residency, use: Use
) -> None:
    await use("a")
    residency.retire(_digest("a"))
    assert not residency.is_loaded(_digest("a"))
    await residency.wait_until_unloaded(_digest("a"))
    assert engine.loaded == {}
    residency.retire(_digest("a"))
    await use("a")
    assert _texts(engine.loads) == "aa"


async def test_retired_unloads_when_its_last_holder_ends(
    engine: FakeEngine, residency: Residency, use: Use
) -> None:
    ends = [asyncio.Event(), asyncio.Event()]
    async with asyncio.TaskGroup() as tasks:
        for end in ends:
            tasks.create_task(use("a", end))
        await _settle()
        residency.retire(_digest("a"))
        ends[0].set()
        await _settle()
        assert residency.is_loaded(_digest("a"))
        ends[1].set()
    await _settle()
    assert engine.loaded == {}


async def test_retired_while_it_loads(engine: FakeEngine, residency: Residency, use: Use) -> None:
    engine.hold_loads()
    using = asyncio.create_task(use("a"))
    await _settle()
    residency.retire(_digest("a"))
    engine.release_loads()
    await using
    await _settle()
    assert engine.loaded == {}


async def test_asked_for_while_it_unloads(
    engine: FakeEngine, residency: Residency, use: Use
) -> None:
    await use("a")
    residency.retire(_digest("a"))
    await use("a")
    assert _texts(engine.loads) == "aa"
    assert _texts(list(engine.loaded)) == "a"


async def test_the_first_to_ask_may_leave(engine: FakeEngine, use: Use) -> None:
    engine.hold_loads()
    first, second = asyncio.create_task(use("a")), asyncio.create_task(use("a"))
    await _settle()
    first.cancel()
    await _settle()
    engine.release_loads()
    await second
    assert first.cancelled()
    assert _texts(engine.loads) == "a"


async def test_who_leaves_while_it_loads_holds_nothing(engine: FakeEngine, use: Use) -> None:
    engine.hold_loads()
    using = asyncio.create_task(use("a"))
    await _settle()
    using.cancel()
    await _settle()
    engine.release_loads()
    for text in "bcd":
        await use(text)
    assert _texts(list(engine.loaded)) == "cd"


async def test_who_leaves_while_waiting_for_room_loads_nothing(
    engine: FakeEngine, use: Use
) -> None:
    ends = {text: asyncio.Event() for text in "ab"}
    async with asyncio.TaskGroup() as tasks:
        for text in "ab":
            tasks.create_task(use(text, ends[text]))
        await _settle()
        leaving, staying = asyncio.create_task(use("c")), tasks.create_task(use("d"))
        await _settle()
        leaving.cancel()
        ends["a"].set()
        await staying
        ends["b"].set()
    assert _texts(engine.loads) == "abd"


async def test_an_unload_that_fails_is_not_the_next_ones_fault(
    engine: FakeEngine, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(adapter: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(engine, "unload_adapter", fail)
    for text in "abcdef":
        await use(text)
    assert _texts(engine.loads) == "abcdef"


async def test_one_that_leaves_is_enough_for_one_that_comes(
    engine: FakeEngine, residency: Residency, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    unload, may_unload = engine.unload_adapter, asyncio.Event()

    async def unload_slowly(adapter: AdapterFiles) -> None:
        await may_unload.wait()
        await unload(adapter)

    monkeypatch.setattr(engine, "unload_adapter", unload_slowly)
    for text in "ab":
        await use(text)
    coming = asyncio.create_task(use("c"))
    await _settle()
    await use("b")
    await _settle()
    assert residency.is_loaded(_digest("b"))
    may_unload.set()
    await coming
    assert _texts(engine.unloads) == "a"


async def test_any_order_of_events(engine: FakeEngine, residency: Residency, use: Use) -> None:
    """The engine asserts that nothing is loaded twice, and here nothing is beyond the capacity."""
    chance = random.Random(11)  # noqa: S311 (it is a test)

    async def client() -> None:
        for _ in range(20):
            text = chance.choice("abcde")
            using = asyncio.ensure_future(use(text))
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            assert len(engine.loaded) <= CAPACITY
            match chance.randrange(4):
                case 0:
                    using.cancel()
                case 1:
                    residency.retire(_digest(text))
            await asyncio.wait([using])

    async with asyncio.timeout(20):
        await asyncio.gather(*(client() for _ in range(12)))
    await _settle()
    assert residency._unloading == {}
    assert residency._tasks == set()
    pool = residency._pools["lora"]
    assert pool.num_used == len(engine.loaded) == len(pool.residents)
    assert all(not resident.num_holders for resident in pool.residents.values())
