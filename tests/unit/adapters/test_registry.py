"""What is live, and what a request that is on its way keeps."""

import asyncio
import io
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.adapters import intake as intake_module
from app.adapters.intake import Intake
from app.adapters.registry import AdapterRegistry, Adapters
from app.adapters.sources import HubRepository
from app.adapters.staging import UploadedFile
from app.errors import (
    AdapterConflict,
    AdapterError,
    AdapterNotFound,
    AdapterRejected,
    EngineStarting,
    InvalidRequest,
    SoftserveError,
    StartError,
    Unavailable,
)
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.versions.records import Record, Watched
from softserve.schema.adapters import AdapterKind
from tests.adapter_files import read_files, write_lora, write_soft_prompt
from tests.fake_engine import ARCHITECTURE, FakeEngine
from tests.staged_versions import a_version, stage

pytestmark = pytest.mark.usefixtures("in_a_hurry")

Publish = Callable[..., Awaitable[Record]]


@pytest.fixture
def publish(registry: AdapterRegistry) -> Publish:
    async def publish(
        name: str,
        text: str,
        kind: AdapterKind = "lora",
        source: str = "upload",
        watched: Watched | None = None,
    ) -> Record:
        async with registry.names.staging() as folder:
            version = stage(folder, text, kind)
            return await registry.publish(name, folder, version, source, watched=watched)

    return publish


def _digest(text: str) -> str:
    return a_version(text).digest


def _texts(digests: object) -> str:
    """The texts of versions, which have one letter each here."""
    texts = {_digest(text): text for text in "abcdefghijklmnopqrstuvwxyz"}
    assert isinstance(digests, list | dict | tuple | set)
    return "".join(texts[digest] for digest in digests)


def _history(record: Record) -> str:
    """The versions from new to old, with the live one in brackets."""
    return _texts(record.digests).replace(live := _texts([record.live]), f"[{live}]")


def _on_disk(settings: Settings) -> str:
    assert settings.adapter_store is not None
    return "".join(
        sorted(_texts([path.name for path in (settings.adapter_store / "versions").iterdir()]))
    )


def _staged(settings: Settings) -> list[Path]:
    assert settings.adapter_store is not None
    return list((settings.adapter_store / "staging").iterdir())


async def _answer(registry: AdapterRegistry, adapter: str) -> str:
    """The version that a request gets."""
    async with registry.lease(adapter) as adapters:
        assert adapters.lora is not None
        return _texts([adapters.lora.version.digest])


async def _refusal(
    registry: AdapterRegistry, adapter: str | None = None, soft_prompt: str | None = None
) -> SoftserveError:
    with pytest.raises(SoftserveError) as raised:
        async with registry.lease(adapter, soft_prompt):
            pass
    return raised.value


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# Names.


@pytest.mark.parametrize("name", ["a", "7", "Summary-v2.1_x", "a" * 64])
def test_a_name(registry: AdapterRegistry, name: str) -> None:
    registry.names.check(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "_a", "a/b", "a@b", "a b", "a" * 65, "é", "a\n", "a\0"]
)
async def test_not_a_name(registry: AdapterRegistry, publish: Publish, name: str) -> None:
    for attempt in (publish(name, "a"), registry.names.rollback(name), registry.remove(name)):
        with pytest.raises(InvalidRequest, match="choose another") as raised:
            await attempt
        assert raised.value.param == "name"
    assert len(registry.names._locks) == 0


# Resolving.


async def test_a_request_without_adapters(registry: AdapterRegistry) -> None:
    async with registry.lease() as adapters:
        assert adapters == Adapters()


async def test_both_kinds(registry: AdapterRegistry, publish: Publish, engine: FakeEngine) -> None:
    await publish("summary", "a")
    await publish("tone", "b", "soft_prompt")
    async with registry.lease("summary", "tone") as adapters:
        assert adapters.lora is not None
        assert adapters.soft_prompt is not None
        assert (adapters.lora.name, adapters.soft_prompt.name) == ("summary", "tone")
        assert set(engine.loaded) == {_digest("a"), _digest("b")}


async def test_a_pinned_version(registry: AdapterRegistry, publish: Publish) -> None:
    await publish("summary", "a")
    await publish("summary", "b")
    assert await _answer(registry, "summary") == "b"
    assert await _answer(registry, f"summary@{_digest('a')}") == "a"
    assert await _answer(registry, f"summary@{_digest('a')[:6]}") == "a"


async def test_an_unknown_name(registry: AdapterRegistry, publish: Publish) -> None:
    await publish("summary", "a")
    await publish("summary-tone", "b", "soft_prompt")
    refusal = await _refusal(registry, "sumary")
    assert isinstance(refusal, AdapterNotFound)
    assert refusal.message == "no adapter is called 'sumary': did you mean summary?"
    assert refusal.param == "adapter"
    refusal = await _refusal(registry, soft_prompt="x")
    assert refusal.message == "no adapter is called 'x': GET /adapters lists them"
    assert refusal.param == "soft_prompt"


@pytest.mark.parametrize("name", ["", "@", "@abcdef", "../names/summary", "x" * 10_000])
async def test_what_is_no_name_is_unknown(
    registry: AdapterRegistry, publish: Publish, name: str
) -> None:
    await publish("summary", "a")
    refusal = await _refusal(registry, name)
    assert isinstance(refusal, AdapterNotFound)
    assert len(refusal.message) < 200


async def test_named_in_the_wrong_field(registry: AdapterRegistry, publish: Publish) -> None:
    await publish("summary", "a")
    await publish("tone", "b", "soft_prompt")
    refusal = await _refusal(registry, "tone")
    assert isinstance(refusal, InvalidRequest)
    assert refusal.message == "tone is a soft prompt: name it in soft_prompt"
    assert refusal.param == "adapter"
    refusal = await _refusal(registry, soft_prompt="summary")
    assert refusal.message == "summary is a LoRA adapter: name it in adapter"


async def test_refused_before_anything_is_held(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine
) -> None:
    await publish("summary", "a")
    await _refusal(registry, "summary", "unknown")
    await publish("summary", "b")
    await _settle()
    assert _texts(engine.loaded) == "b"


# Publishing.


async def test_the_status(registry: AdapterRegistry, publish: Publish) -> None:
    await publish("summary", "a", source="org/name@1")
    status = await publish("summary", "b")
    for _ in range(3):
        await _answer(registry, "summary")
    await _answer(registry, f"summary@{_digest('a')}")
    assert _history(status) == "[b]a"
    record = registry.names.get("summary")
    assert (record.kind, record.live, record.rejected) == ("lora", _digest("b"), None)
    assert [entry.source for entry in record.history] == ["upload", "org/name@1"]
    assert record.history[0].created_at > record.history[1].created_at
    assert [registry.names.store.version(digest) for digest in record.digests] == [
        a_version("b"),
        a_version("a"),
    ]
    assert registry.num_requests("summary") == {_digest("b"): 3, _digest("a"): 1}
    assert registry.is_loaded(_digest("b"))
    await publish("first", "c")
    assert [each.name for each in registry.names.list()] == ["first", "summary"]


async def test_a_request_keeps_its_version(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine
) -> None:
    await publish("summary", "a")
    async with registry.lease("summary"):
        await publish("summary", "b")
        assert await _answer(registry, "summary") == "b"
        assert _texts(engine.loaded) == "ab"
    await _settle()
    assert _texts(engine.loaded) == "b"


async def test_the_old_version_answers_until_the_new_one_is_loaded(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine
) -> None:
    await publish("summary", "a")
    engine.hold_loads()
    publishing = asyncio.ensure_future(publish("summary", "b"))
    await _until(lambda: len(engine.loads) == 2)
    assert await _answer(registry, "summary") == "a"
    engine.release_loads()
    await publishing
    assert await _answer(registry, "summary") == "b"


async def test_every_request_after_a_publish_gets_the_new_version(
    registry: AdapterRegistry, publish: Publish
) -> None:
    await publish("summary", "a")
    published = "a"

    async def ask() -> None:
        while published < "k":
            at_least = published
            assert await _answer(registry, "summary") >= at_least
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(ask())
        for text in "bcdefghijk":
            await publish("summary", text)
            published = text


async def test_the_same_version_again(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    before = await publish("summary", "a")
    assert await publish("summary", "a") == before
    assert _texts(engine.loads) == "a"
    assert _on_disk(settings) == "a"
    assert _staged(settings) == []


async def test_another_kind_is_a_conflict(
    registry: AdapterRegistry, publish: Publish, settings: Settings
) -> None:
    await publish("summary", "a")
    with pytest.raises(AdapterConflict) as raised:
        await publish("summary", "b", "soft_prompt")
    assert raised.value.message == (
        "summary is a LoRA adapter and this is a soft prompt: choose another name, or remove the "
        "old one first"
    )
    assert await _answer(registry, "summary") == "a"
    assert _on_disk(settings) == "a"


async def test_a_retired_name_may_come_back_as_another_kind(
    registry: AdapterRegistry, publish: Publish, settings: Settings
) -> None:
    await publish("summary", "a", source="adapter_dir", watched=Watched("1", _digest("a")))
    await registry.names.forget_watched("summary")
    status = await publish("summary", "b", "soft_prompt")
    assert (_history(status), status.kind) == ("[b]", "soft_prompt")
    assert _on_disk(settings) == "b"


async def test_what_the_engine_rejects_leaves_nothing(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    before = await publish("summary", "a")
    engine.reject(_digest("b"), "the engine has no such module")
    for name in ("summary", "new"):
        with pytest.raises(AdapterRejected, match="no such module"):
            await publish(name, "b")
    assert registry.names.list() == (before,)
    assert _on_disk(settings) == "a"
    assert _staged(settings) == []


async def test_a_full_disk_changes_nothing(
    registry: AdapterRegistry,
    publish: Publish,
    engine: FakeEngine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = await publish("summary", "a")

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(registry.names.store, "save", fail)
        with pytest.raises(Unavailable, match=r"No space left on device.*free some disk space"):
            await publish("summary", "b")
    assert [entry["event"] for entry in logs] == ["the adapter store cannot be written"]
    await _settle()
    assert registry.names.list() == (before,)
    assert _texts(engine.loaded) == _on_disk(settings) == "a"


async def test_versions_are_trimmed(publish: Publish, settings: Settings) -> None:
    for text in "abcd":
        status = await publish("summary", text)
    assert _history(status) == "[d]cb"
    assert _on_disk(settings) == "bcd"


async def test_a_version_in_use_is_not_trimmed(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    await publish("summary", "a")
    async with registry.lease("summary"):
        for text in "bcd":
            status = await publish("summary", text)
        assert _history(status) == "[d]cba"
        assert "a" in _texts(engine.loaded)
    assert _history(await publish("summary", "e")) == "[e]dc"
    assert _on_disk(settings) == "cde"


async def test_a_version_that_another_name_has_stays(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    await publish("summary", "a")
    await publish("other", "a")
    await publish("summary", "b")
    await registry.remove("summary")
    assert await _answer(registry, "other") == "a"
    assert _on_disk(settings) == _texts(engine.loaded) == "a"
    assert _texts(engine.loads) == "ab"


async def test_one_name_after_the_other_and_different_names_at_once(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine
) -> None:
    engine.hold_loads()
    tasks = [asyncio.ensure_future(publish("one", "a"))]
    await _until(lambda: engine.loads)
    tasks += [asyncio.ensure_future(publish("one", "b"))]
    tasks += [asyncio.ensure_future(publish("two", "c"))]
    await _until(lambda: len(engine.loads) == 2)
    await _settle()
    assert _texts(engine.loads) == "ac"
    engine.release_loads()
    await asyncio.gather(*tasks)
    assert [_history(status) for status in registry.names.list()] == ["[b]a", "[c]"]
    assert len(registry.names._locks) == 0


async def test_more_adapters_than_fit_are_loaded_when_asked_for(
    engine: FakeEngine, settings: Settings
) -> None:
    settings = settings.model_copy(update={"max_loaded_adapters": 1})
    registry = AdapterRegistry(engine, settings, Metrics(max_names=10))
    await registry.open()
    for text in "ab":
        async with registry.names.staging() as folder:
            await registry.publish(text, folder, stage(folder, text), "upload")
    assert [registry.is_loaded(record.live or "") for record in registry.names.list()] == [
        False,
        True,
    ]
    assert await _answer(registry, "a") == "a"
    assert _texts(engine.loads) == "aba"
    await registry.close()


# Rolling back.


async def test_rolling_back_to_a_version(registry: AdapterRegistry, publish: Publish) -> None:
    for text in "abc":
        await publish("summary", text)
    assert _history(await registry.names.rollback("summary", _digest("a"))) == "cb[a]"
    assert _history(await registry.names.rollback("summary", _digest("c")[:8])) == "[c]ba"
    assert _history(await registry.names.rollback("summary", _digest("c"))) == "[c]ba"
    for version in ("1234567", "x"):
        with pytest.raises(AdapterNotFound) as raised:
            await registry.names.rollback("summary", version)
        assert raised.value.param == "version"


async def test_a_request_keeps_what_is_rolled_back(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine
) -> None:
    for text in "ab":
        await publish("summary", text)
    async with registry.lease("summary") as adapters:
        await registry.names.rollback("summary")
        assert adapters.lora is not None
        assert adapters.lora.version.digest in engine.loaded
        assert await _answer(registry, "summary") == "a"
    await _settle()
    assert _texts(engine.loaded) == "a"


async def test_a_rollback_that_the_engine_rejects(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine
) -> None:
    for text in "ab":
        await publish("summary", text)
    await _settle()
    engine.reject(_digest("a"), "not any more")
    with pytest.raises(AdapterRejected):
        await registry.names.rollback("summary")
    assert _history(registry.names.get("summary")) == "[b]a"
    refusal = await _refusal(registry, f"summary@{_digest('a')}")
    assert refusal.message == "not any more"


async def test_rolling_back_an_unknown_name(registry: AdapterRegistry) -> None:
    with pytest.raises(AdapterNotFound):
        await registry.names.rollback("summary")


# Removing.


async def test_removed(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    for text in "ab":
        await publish("summary", text)
    await registry.remove("summary")
    assert registry.names.list() == ()
    assert (engine.loaded, _on_disk(settings)) == ({}, "")
    assert isinstance(await _refusal(registry, "summary"), AdapterNotFound)
    with pytest.raises(AdapterNotFound):
        await registry.remove("summary")
    with pytest.raises(AdapterNotFound):
        registry.names.get("summary")


async def test_removing_waits_for_requests_on_every_version(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    await publish("summary", "a")
    async with registry.lease("summary"):
        await publish("summary", "b")
        async with registry.lease("summary"):
            removing = asyncio.create_task(registry.remove("summary"))
            await _until(lambda: not registry.names.list())
            assert isinstance(await _refusal(registry, "summary"), AdapterNotFound)
            assert set(_texts(engine.loaded)) == {"a", "b"}
            assert _on_disk(settings) == "ab"
        await _settle()
        assert not removing.done()
    await removing
    assert (engine.loaded, _on_disk(settings)) == ({}, "")


async def test_removing_goes_on_without_who_asked(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    await publish("summary", "a")
    async with registry.lease("summary"):
        removing = asyncio.create_task(registry.remove("summary"))
        await _until(lambda: registry._background)
        removing.cancel()
        await asyncio.wait([removing])
        assert _on_disk(settings) == _texts(engine.loaded) == "a"
    await _until(lambda: _on_disk(settings) == "")
    assert engine.loaded == {}


async def test_added_again_while_it_is_being_removed(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    await publish("summary", "a")
    async with registry.lease("summary"):
        removing = asyncio.create_task(registry.remove("summary"))
        await _until(lambda: not registry.names.list())
        await publish("summary", "b")
        assert registry.num_requests("summary").total() == 0
        assert await _answer(registry, "summary") == "b"
        assert not removing.done()
    await removing
    assert _on_disk(settings) == _texts(engine.loaded) == "b"


# Restarting.


async def test_a_restart_changes_nothing(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    for text in "abc":
        await publish("summary", text)
    await publish("tone", "d", "soft_prompt")
    await registry.names.rollback("summary")
    with pytest.raises(StartError, match="another server uses the adapter store"):
        await AdapterRegistry(engine, settings, Metrics(max_names=10)).open()
    await registry.close()
    engine = FakeEngine()
    again = AdapterRegistry(engine, settings, Metrics(max_names=10))
    await again.open()
    assert [_history(status) for status in again.names.list()] == ["c[b]a", "[d]"]
    assert engine.loads == []
    assert await _answer(again, "summary") == "b"
    assert _texts(engine.loads) == "b"
    await again.close()


async def test_what_is_damaged_in_the_store_is_listed(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    await publish("summary", "a")
    await publish("summary", "b")
    await publish("other", "c")
    await registry.close()
    assert settings.adapter_store is not None
    (settings.adapter_store / "names" / "other.json").write_text("{")
    (settings.adapter_store / "versions" / _digest("b") / "adapter_config.json").unlink()
    again = AdapterRegistry(engine, settings, Metrics(max_names=10))
    await again.open()
    other, summary = again.names.list()
    assert other.rejected == "its record in the store is damaged: add the adapter again"
    assert (other.kind, other.live, other.history) == (None, None, ())
    assert summary.live is None
    refusal = await _refusal(again, "summary")
    assert refusal.message == (
        f"summary is not served: its live version {_digest('b')[:12]} is damaged in the store: "
        "add it again"
    )
    engine.loaded.clear()
    status = await again.names.rollback("summary")
    assert (_history(status), status.rejected) == ("[a]", None)
    await again.remove("other")
    assert [status.name for status in again.names.list()] == ["summary"]
    await again.close()


async def test_checking_needs_a_started_engine(settings: Settings) -> None:
    engine = FakeEngine()
    registry = AdapterRegistry(engine, settings, Metrics(max_names=10))
    await registry.open()
    with pytest.raises(EngineStarting):
        await Intake(engine, registry, settings).add_upload("summary", [])
    await registry.close()


# From files to live.


async def test_uploaded(registry: AdapterRegistry, intake: Intake, tmp_path: Path) -> None:
    files = read_files(write_lora(tmp_path / "lora", ARCHITECTURE.modules))
    uploads = [UploadedFile(name, io.BytesIO(content)) for name, content in files]
    status = await intake.add_upload("summary", uploads)
    assert (status.kind, status.history[0].source) == ("lora", "upload")
    async with registry.lease("summary") as adapters:
        assert adapters.lora is not None
        assert adapters.lora.version.digest == status.live


async def test_added_from_a_folder(
    registry: AdapterRegistry, intake: Intake, settings: Settings, tmp_path: Path
) -> None:
    write_soft_prompt(settings.adapter_dir / "tone", 4, ARCHITECTURE.hidden_size)
    status = await intake.add_source("polite", "tone")
    assert (status.kind, status.history[0].source) == ("soft_prompt", "tone")
    write_soft_prompt(tmp_path / "elsewhere", 4, ARCHITECTURE.hidden_size)
    with pytest.raises(AdapterRejected):
        await intake.add_source("polite", str(tmp_path / "elsewhere"))


async def test_added_from_the_hub(
    registry: AdapterRegistry,
    intake: Intake,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch(repository: HubRepository, into: Path, max_bytes: int) -> str:
        assert max_bytes == settings.max_adapter_bytes
        write_lora(into, ARCHITECTURE.modules)
        return f"{repository.repo_id}@0123"

    monkeypatch.setattr(intake_module, "fetch_hub", fetch)
    status = await intake.add_source("summary", "org/name", "main")
    assert status.history[0].source == "org/name@0123"
    assert _staged(settings) == []


async def test_invalid_files_leave_nothing(
    registry: AdapterRegistry, intake: Intake, settings: Settings, tmp_path: Path
) -> None:
    folder = write_lora(tmp_path / "lora", ARCHITECTURE.modules, base_model="org/another")
    with pytest.raises(AdapterRejected):
        await intake.add_folder("summary", folder, "here")
    assert registry.names.list() == ()
    assert _on_disk(settings) == ""
    assert _staged(settings) == []
    status = await intake.add_folder("summary", folder, "here", force=True)
    assert registry.names.store.version(status.digests[0]).base_model == "org/another"


# Everything at once.


async def test_cancelled_at_any_moment(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    """Leaves the old or the new state; what is live is on disk, and nothing else is."""
    chance = random.Random(3)  # noqa: S311 (it is a test)
    for _ in range(30):
        before = [status.live for status in registry.names.list()]
        text = chance.choice("abcdef")
        publishing = asyncio.ensure_future(publish("summary", text))
        for _ in range(chance.randrange(40)):
            await asyncio.sleep(0.0001)
        publishing.cancel()
        await asyncio.wait([publishing])
        live = [status.live for status in registry.names.list()]
        assert live in (before, [_digest(text)])
        kept = [digest for record in registry.names.list() for digest in record.digests]
        assert _on_disk(settings) == "".join(sorted(_texts(kept)))
        assert _staged(settings) == []
    await _settle()
    assert set(engine.loaded) <= {status.live for status in registry.names.list()}


async def test_any_order_of_events(
    registry: AdapterRegistry, publish: Publish, engine: FakeEngine, settings: Settings
) -> None:
    """The engine asserts that nothing is unloaded in use or loaded without its files."""
    chance = random.Random(5)  # noqa: S311 (it is a test)
    names = ["one", "two", "three"]
    changes: list[Callable[[str], Awaitable[object]]] = [
        registry.names.rollback,
        registry.remove,
        *(partial(publish, text=text) for text in "abcdefgh"),
    ]

    async def operator() -> None:
        for _ in range(15):
            name = chance.choice(names)
            change = chance.choice(changes)
            with suppress(AdapterError):
                await change(name)

    async def client() -> None:
        for _ in range(40):
            with suppress(AdapterNotFound):
                async with registry.lease(chance.choice(names)) as adapters:
                    assert adapters.lora is not None
                    digest = adapters.lora.version.digest
                    for _ in range(chance.randrange(10)):
                        assert digest in engine.loaded
                        assert registry.names.store.folder(digest).is_dir()
                        await asyncio.sleep(0.0001)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(operator())
        for _ in range(6):
            tasks.create_task(client())
    for name in names:
        with suppress(AdapterNotFound):
            await registry.remove(name)
    await _settle()
    assert (registry.names.list(), engine.loaded, _on_disk(settings)) == ((), {}, "")
