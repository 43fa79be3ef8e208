"""A real folder is watched. Tests wait for events; none depends on how long they take."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import watchfiles
from structlog.testing import capture_logs

from app.adapters.folder import AdapterFolder
from app.adapters.intake import Intake
from app.adapters.registry import AdapterRegistry
from app.adapters.validation import digest_of
from app.adapters.version import AdapterVersion
from app.errors import AdapterNotFound, AdapterRejected
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.versions import watcher as watcher_module
from app.versions.records import Record
from app.versions.watcher import FolderWatcher
from tests.adapter_files import write_lora, write_multitask, write_soft_prompt
from tests.fake_engine import ARCHITECTURE, FakeEngine

pytestmark = pytest.mark.usefixtures("in_a_hurry")


@pytest.fixture
def adapters(settings: Settings) -> Path:
    """The watched folder."""
    settings.adapter_dir.mkdir()
    return settings.adapter_dir


@asynccontextmanager
async def watching(intake: Intake, settings: Settings) -> AsyncIterator[FolderWatcher]:
    folder = AdapterFolder(intake, settings.adapter_dir, settings.adapter_root)
    watcher = FolderWatcher(intake.registry.names, folder)
    running = asyncio.create_task(watcher.run())
    try:
        yield watcher
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


def _write(folder: Path, seed: int = 0) -> Path:
    return write_lora(folder, ARCHITECTURE.modules, seed=seed)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _get(registry: AdapterRegistry, name: str) -> Record | None:
    try:
        return registry.names.get(name)
    except AdapterNotFound:
        return None


def _live(registry: AdapterRegistry, name: str) -> str | None:
    status = _get(registry, name)
    return None if status is None else status.live


def _rejected(registry: AdapterRegistry, name: str) -> str | None:
    status = _get(registry, name)
    return None if status is None else status.rejected


async def _looked_at(watcher: FolderWatcher, times: int = 3) -> None:
    """Wait until everything has been looked at, and nothing is left to do."""
    looks = 0
    scan = watcher._scan

    async def count() -> None:
        nonlocal looks
        await scan()
        looks = looks + 1 if not watcher._waiting and not watcher._acting else 0

    watcher._scan = count  # type: ignore[method-assign]
    await _until(lambda: looks >= times)
    watcher._scan = scan  # type: ignore[method-assign]


async def _changed_to(registry: AdapterRegistry, name: str, before: str | None) -> str:
    await _until(lambda: _live(registry, name) not in {None, before})
    live = _live(registry, name)
    assert live is not None
    return live


# What appears.


async def test_what_is_there_at_the_start(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary")
    write_soft_prompt(adapters / "tone", 4, ARCHITECTURE.hidden_size)
    async with watching(intake, settings):
        await _until(lambda: _live(registry, "summary") and _live(registry, "tone"))
    summary, tone = registry.names.list()
    assert (summary.kind, tone.kind) == ("lora", "soft_prompt")
    assert summary.history[0].source == "adapter_dir"


async def test_a_multitask_folder_is_live_with_all_its_tasks(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    write_multitask(adapters / "tasks", 4, ARCHITECTURE.hidden_size, 3)
    async with watching(intake, settings):
        await _until(lambda: _live(registry, "tasks"))
    async with registry.lease(soft_prompt="tasks#2") as leased:
        assert (leased.task, leased.num_virtual_tokens) == (2, 4)


async def test_the_folder_comes_later(
    intake: Intake, registry: AdapterRegistry, settings: Settings
) -> None:
    async with watching(intake, settings) as watcher:
        await _looked_at(watcher)
        _write(settings.adapter_dir / "summary")
        await _until(lambda: _live(registry, "summary"))


async def test_moved_there(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path, tmp_path: Path
) -> None:
    async with watching(intake, settings) as watcher:
        await _looked_at(watcher)
        _write(tmp_path / "elsewhere").rename(adapters / "summary")
        await _until(lambda: _live(registry, "summary"))


async def test_written_under_another_name_first(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary")
    weights = adapters / "summary" / "adapter_model.safetensors"
    partial = weights.rename(weights.with_name("adapter_model.safetensors.tmp"))
    async with watching(intake, settings) as watcher:
        await asyncio.sleep(0.3)
        assert registry.names.list() == ()
        assert watcher._waiting
        partial.rename(weights)
        await _until(lambda: _live(registry, "summary"))


async def test_a_copy_that_takes_its_time(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path, tmp_path: Path
) -> None:
    whole = _write(tmp_path / "whole")
    content = (whole / "adapter_model.safetensors").read_bytes()
    async with watching(intake, settings):
        (adapters / "summary").mkdir()
        with (adapters / "summary" / "adapter_model.safetensors").open("wb") as copy:
            for start in range(0, len(content), 200):
                copy.write(content[start : start + 200])
                copy.flush()
                await asyncio.sleep(0.05)
                assert registry.names.list() == ()
        shutil.copy(whole / "adapter_config.json", adapters / "summary")
        await _until(lambda: _live(registry, "summary"))


async def test_a_copy_that_stopped(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "STALLED_SECONDS", 0.3)
    whole = _write(tmp_path / "whole")
    content = (whole / "adapter_model.safetensors").read_bytes()
    folder = adapters / "summary"
    folder.mkdir()
    async with watching(intake, settings):
        (folder / "adapter_model.safetensors").write_bytes(content[:-1])
        await _until(
            lambda: (
                _rejected(registry, "summary")
                == "its folder has no adapter_config.json: copy it there"
            )
        )
        shutil.copy(whole / "adapter_config.json", folder)
        await _until(
            lambda: (
                _rejected(registry, "summary")
                == "its adapter_model.safetensors is shorter than its header says: copy it again"
            )
        )
        assert _live(registry, "summary") is None
        (folder / "adapter_model.safetensors").write_bytes(content)
        await _until(lambda: _live(registry, "summary"))
        assert _rejected(registry, "summary") is None


async def test_documents_are_ignored_with_a_word(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    (adapters / "README.md").write_text("Adapters go here.")
    (adapters / "notes").mkdir()
    (adapters / "notes" / "a.txt").write_text("")
    _write(adapters / ".hidden")
    _write(adapters / "not a name")
    with capture_logs() as logs:
        async with watching(intake, settings) as watcher:
            await _looked_at(watcher)
    assert registry.names.list() == ()
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry["found"] for entry in warnings] == ["not a name"]
    ignored = [entry["found"] for entry in logs if entry["event"] == "not an adapter: ignored"]
    assert sorted(ignored) == ["README.md", "notes"]


def _empty_folder(path: Path) -> None:
    path.mkdir()


def _folder_with(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text("content")

    return make


def _loose_file(path: Path) -> None:
    path.write_bytes(b"content")


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _link_that_leads_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


LEFTOVERS: list[tuple[str, Callable[[Path], None], str]] = [
    ("empty", _empty_folder, "its folder is empty: copy adapter_config.json and"),
    ("out.tar.gz", _loose_file, "it is an archive: unpack it there into a folder of its own"),
    ("out.zip", _loose_file, "it is an archive: unpack it there into a folder of its own"),
    ("adapter_config.json", _loose_file, "it is a file, and an adapter is a folder: put"),
    ("adapter_model.safetensors", _loose_file, "it is a file, and an adapter is a folder: put"),
    ("adapter_model.bin", _loose_file, "adapter_model.bin is a pickle, which can run any code"),
    ("nowhere-at-all", _link_that_leads_nowhere, "it is a link that leads nowhere"),
    ("loop", _link_to_itself, "it is a link that leads nowhere"),
    ("packed", _folder_with("out.zip"), "its folder holds an archive, 'out.zip': unpack it there"),
    (
        "pickled",
        _folder_with("adapter_config.json", "adapter_model.bin", "training_args.bin"),
        "adapter_model.bin is a pickle, which can run any code, and was not read: save the adapter",
    ),
    ("pickle", _folder_with("adapter_model.bin"), "adapter_model.bin is a pickle"),
    (
        "pickled-below",
        _folder_with("default/adapter_config.json", "default/adapter_model.bin"),
        "adapter_model.bin is a pickle",
    ),
    (
        "model",
        _folder_with("config.json", "model.safetensors"),
        "its folder has neither adapter_config.json nor adapter_model.safetensors: copy",
    ),
    (
        "several",
        _folder_with("checkpoint-1/adapter_config.json", "checkpoint-2/adapter_config.json"),
        "adapter files lie in 'checkpoint-1' and in 'checkpoint-2': give the folder of one adapter",
    ),
]


@pytest.mark.parametrize(("name", "make", "reason"), LEFTOVERS, ids=[each[0] for each in LEFTOVERS])
async def test_what_is_no_adapter_as_it_stands(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path], None],
    reason: str,
) -> None:
    monkeypatch.setattr(watcher_module, "STALLED_SECONDS", 0.1)
    make(adapters / name)
    with capture_logs() as logs:
        async with watching(intake, settings) as watcher:
            await _until(lambda: _rejected(registry, name))
            await _looked_at(watcher)
    assert (_rejected(registry, name) or "").startswith(reason)
    assert [each["name"] for each in logs if each["log_level"] == "warning"] == [name]


async def test_a_named_adapter_of_peft_lies_one_folder_deeper(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary" / "default")
    async with watching(intake, settings):
        first = await _changed_to(registry, "summary", None)
        assert first == digest_of(adapters / "summary" / "default")
        _write(adapters / "summary" / "default", seed=1)
        second = await _changed_to(registry, "summary", first)
        # One on top comes before it.
        _write(adapters / "summary", seed=2)
        assert await _changed_to(registry, "summary", second) == digest_of(adapters / "summary")


async def test_a_folder_that_is_emptied_is_gone_and_says_why(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "STALLED_SECONDS", 0.1)
    _write(adapters / "summary")
    async with watching(intake, settings):
        live = await _changed_to(registry, "summary", None)
        for file in (adapters / "summary").iterdir():
            file.unlink()
        await _until(lambda: _rejected(registry, "summary"))
        assert _live(registry, "summary") is None
        with pytest.raises(AdapterNotFound, match="its folder is empty"):
            async with registry.lease("summary"):
                pass
        _write(adapters / "summary")
        await _until(lambda: _live(registry, "summary") == live)


# What changes.


async def test_changed(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary")
    async with watching(intake, settings):
        first = await _changed_to(registry, "summary", None)
        _write(adapters / "summary", seed=1)
        second = await _changed_to(registry, "summary", first)
        assert registry.names.get("summary").digests == (second, first)


async def test_changed_to_what_is_invalid_and_back(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary")
    config = adapters / "summary" / "adapter_config.json"
    content = config.read_text()
    async with watching(intake, settings):
        live = await _changed_to(registry, "summary", None)
        config.write_text("{}")
        await _until(lambda: _rejected(registry, "summary"))
        assert _live(registry, "summary") == live
        config.write_text(content)
        await _until(lambda: _rejected(registry, "summary") is None)
        assert _live(registry, "summary") == live


async def test_invalid_from_the_start(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary")
    (adapters / "summary" / "adapter_config.json").write_text("{}")
    async with watching(intake, settings):
        await _until(registry.names.list)
        (status,) = registry.names.list()
        assert (status.kind, status.live, status.history) == (None, None, ())
        assert status.rejected
        with pytest.raises(AdapterNotFound, match="summary is not served"):
            async with registry.lease("summary"):
                pass
        shutil.rmtree(adapters / "summary")
        await _until(lambda: registry.names.list() == ())


async def test_the_engine_rejects_it(
    intake: Intake,
    registry: AdapterRegistry,
    engine: FakeEngine,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(adapter: object) -> None:
        raise AdapterRejected("the engine says no")

    _write(adapters / "summary")
    async with watching(intake, settings):
        live = await _changed_to(registry, "summary", None)
        monkeypatch.setattr(engine, "load_adapter", refuse)
        _write(adapters / "summary", seed=1)
        await _until(lambda: _rejected(registry, "summary") == "the engine says no")
        assert _live(registry, "summary") == live


async def test_changed_while_it_is_read(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read is neither published nor rejected; the next look decides."""
    staged = intake.staged
    seeds = iter([1, 2])

    @asynccontextmanager
    async def change_meanwhile(
        stage: Callable[[Path, int], object], *, force: bool = False
    ) -> AsyncIterator[tuple[Path, AdapterVersion]]:
        async with staged(stage, force=force) as found:
            if (seed := next(seeds, None)) is not None:
                _write(adapters / "summary", seed)
            if seed == 2:
                raise AdapterRejected("it looked damaged")
            yield found

    monkeypatch.setattr(intake, "staged", change_meanwhile)
    _write(adapters / "summary")
    with capture_logs() as logs:
        async with watching(intake, settings):
            await _until(lambda: _live(registry, "summary"))
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []
    status = registry.names.get("summary")
    assert len(status.history) == 1
    assert status.rejected is None
    assert status.live == digest_of(adapters / "summary")


# What goes.


async def test_removed_and_back(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary")
    async with watching(intake, settings):
        live = await _changed_to(registry, "summary", None)
        async with registry.lease("summary"):
            (adapters / "summary").rename(adapters / ".summary")
            await _until(lambda: _live(registry, "summary") is None)
        with pytest.raises(AdapterNotFound, match="its folder is gone"):
            async with registry.lease("summary"):
                pass
        assert registry.names.get("summary").digests == (live,)
        (adapters / ".summary").rename(adapters / "summary")
        await _until(lambda: _live(registry, "summary") == live)


async def test_removed_while_the_server_was_down(
    intake: Intake,
    registry: AdapterRegistry,
    engine: FakeEngine,
    settings: Settings,
    adapters: Path,
) -> None:
    _write(adapters / "summary")
    async with watching(intake, settings):
        await _until(lambda: _live(registry, "summary"))
    shutil.rmtree(adapters / "summary")
    assert _live(registry, "summary")
    async with watching(intake, settings):
        await _until(lambda: _live(registry, "summary") is None)


async def test_replaced_without_a_gap(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "GONE_SECONDS", 20)
    _write(adapters / "summary")
    async with watching(intake, settings) as watcher:
        first = await _changed_to(registry, "summary", None)
        shutil.rmtree(adapters / "summary")
        await _until(lambda: "summary" in watcher._waiting)
        await asyncio.sleep(0.2)
        assert _live(registry, "summary") == first
        _write(adapters / "summary", seed=1)
        await _until(lambda: _live(registry, "summary") != first)
        assert _live(registry, "summary") is not None


async def test_what_an_operator_published_outlasts_the_folder(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path, tmp_path: Path
) -> None:
    _write(adapters / "other")
    _write(adapters / "same")
    before = await intake.add_folder("before", _write(tmp_path / "before"), "put")
    async with watching(intake, settings):
        await _until(lambda: _live(registry, "other") and _live(registry, "same"))
        other = await intake.add_folder("other", _write(tmp_path / "put", seed=1), "put")
        same = await intake.add_folder("same", adapters / "same", "put")
        shutil.copytree(tmp_path / "before", adapters / "before")
        await _until(lambda: len(registry.names.watched()) == 3)
        for name in ("before", "other", "same"):
            shutil.rmtree(adapters / name)
        await _until(lambda: not registry.names.watched())
    unwatched = [replace(each, watched=None) for each in (before, other, same)]
    assert list(registry.names.list()) == unwatched


async def test_a_missing_folder_retires_nothing(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    _write(adapters / "summary")
    async with watching(intake, settings) as watcher:
        live = await _changed_to(registry, "summary", None)
        shutil.move(adapters, adapters.with_name("unmounted"))
        await _looked_at(watcher)
        assert _live(registry, "summary") == live
        shutil.move(adapters.with_name("unmounted"), adapters)
        await _looked_at(watcher)
        _write(adapters / "summary", seed=1)
        await _changed_to(registry, "summary", live)


# What an operator does stays, until the folder's content changes.


@pytest.mark.parametrize("touched", [False, True])
async def test_a_restart_keeps_what_an_operator_did(
    intake: Intake,
    engine: FakeEngine,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    tmp_path: Path,
    touched: bool,
) -> None:
    names = ("rolled-back", "removed", "put")
    for name in names:
        _write(adapters / name)
    async with watching(intake, settings):
        await _until(lambda: all(_live(registry, name) for name in names))
        first = _live(registry, "rolled-back")
        _write(adapters / "rolled-back", seed=1)
        await _changed_to(registry, "rolled-back", first)
    await registry.names.rollback("rolled-back")
    await registry.remove("removed")
    put = await intake.add_folder("put", _write(tmp_path / "put", seed=2), "put")
    await registry.close()
    if touched:
        for name in names:
            os.utime(adapters / name / "adapter_config.json")
    again = AdapterRegistry(engine, settings, Metrics(max_names=10))
    engine.loaded.clear()
    await again.open()
    async with watching(Intake(engine, again, settings), settings) as watcher:
        await _looked_at(watcher)
        assert _live(again, "rolled-back") == first
        assert _get(again, "removed") is None
        assert _live(again, "put") == put.live
        for name in names:
            _write(adapters / name, seed=3)
        await _until(lambda: len({_live(again, name) for name in names}) == 1)
        assert _live(again, "removed") == digest_of(adapters / "removed")
    await again.close()


async def test_what_was_damaged_in_the_store_is_published_again(
    intake: Intake,
    registry: AdapterRegistry,
    engine: FakeEngine,
    settings: Settings,
    adapters: Path,
) -> None:
    _write(adapters / "summary")
    async with watching(intake, settings):
        live = await _changed_to(registry, "summary", None)
    await registry.close()
    (registry.names.store.folder(live) / "adapter_config.json").unlink()
    engine.loaded.clear()
    again = AdapterRegistry(engine, settings, Metrics(max_names=10))
    await again.open()
    assert _live(again, "summary") is None
    async with watching(Intake(engine, again, settings), settings):
        await _until(lambda: _live(again, "summary") == live)
    assert _rejected(again, "summary") is None
    await again.close()


# Links.


async def test_links(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path, tmp_path: Path
) -> None:
    _write(tmp_path / "root" / "inside")
    _write(tmp_path / "elsewhere" / "outside")
    (adapters / "inside").symlink_to(tmp_path / "root" / "inside")
    (adapters / "outside").symlink_to(tmp_path / "elsewhere" / "outside")
    (adapters / "nowhere").symlink_to(tmp_path / "nowhere")
    async with watching(intake, settings):
        await _until(lambda: len(registry.names.list()) == 3)
        inside, nowhere, outside = registry.names.list()
        assert inside.live
        assert nowhere.rejected == outside.rejected
        assert outside.rejected == (
            "its folder is a link that leads outside: link to a folder below --adapter-dir or an "
            "--adapter-root"
        )
        # No event tells of what changes there.
        _write(tmp_path / "root" / "inside", seed=1)
        await _changed_to(registry, "inside", inside.live)
        _write(tmp_path / "root" / "other", seed=2)
        (adapters / "outside").unlink()
        (adapters / "outside").symlink_to(tmp_path / "root" / "other")
        await _until(lambda: _live(registry, "outside"))


async def test_links_to_files(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path, tmp_path: Path
) -> None:
    """The hub's cache keeps the files of a snapshot elsewhere, as volumes of Kubernetes do."""
    for name, files in {"inside": tmp_path / "root" / "blobs", "outside": tmp_path / "out"}.items():
        (adapters / name).mkdir()
        for file in _write(files).iterdir():
            (adapters / name / file.name).symlink_to(file)
    async with watching(intake, settings):
        await _until(lambda: len(registry.names.list()) == 2)
        inside, outside = registry.names.list()
        assert inside.live
        assert outside.rejected == (
            "adapter_config.json is a link that leads outside: put the file itself there, or link "
            "to one below --adapter-dir or an --adapter-root"
        )
        _write(tmp_path / "root" / "blobs", seed=1)
        await _changed_to(registry, "inside", inside.live)


# What fails.


async def test_a_failure_of_one_harms_no_other(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = registry.publish

    async def fail(name: str, *arguments: object, **more: object) -> Record:
        if name == "bad":
            raise RuntimeError("a bug")
        return await publish(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "publish", fail)
    monkeypatch.setattr(watcher_module, "RETRY_SECONDS", 0.1)
    _write(adapters / "bad")
    with capture_logs() as logs:
        async with watching(intake, settings):
            await _until(lambda: any(entry.get("exc_info") for entry in logs))
            _write(adapters / "good")
            await _until(lambda: _live(registry, "good"))
            monkeypatch.setattr(registry, "publish", publish)
            await _until(lambda: _live(registry, "bad"))


async def test_a_look_that_fails_is_tried_again(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(watcher_module, "RETRY_SECONDS", 0.05)
    _write(adapters / "summary")
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(AdapterFolder, "look_around", fail)
        async with watching(intake, settings):
            await _until(lambda: len(logs) > 1)
            patch.undo()
            await _until(lambda: _live(registry, "summary"))


async def test_without_events(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OSError("inotify watch limit reached")

    monkeypatch.setattr(watchfiles, "awatch", fail)
    async with watching(intake, settings) as watcher:
        await _looked_at(watcher)
        _write(adapters / "summary")
        await _until(lambda: _live(registry, "summary"))


# The completeness of a file, by its size alone.


def _missing(intake: Intake, folder: Path, content: bytes) -> str | None:
    (folder / "adapter_model.safetensors").write_bytes(content)
    return AdapterFolder(intake, folder.parent).look_at(folder.name, None).missing


def test_complete(intake: Intake, tmp_path: Path) -> None:
    _write(tmp_path)
    content = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert _missing(intake, tmp_path, content) is None
    for size in (0, 7, 8, 9, 200, len(content) - 1):
        assert _missing(intake, tmp_path, content[:size]) is not None


@pytest.mark.parametrize(
    "header", [b"[]", b"1", b"{", b'{"a": 1}', b'{"a": {"data_offsets": 1}}', b"\xff", b"null"]
)
def test_what_makes_no_sense_is_for_validation(
    intake: Intake, tmp_path: Path, header: bytes
) -> None:
    _write(tmp_path)
    assert _missing(intake, tmp_path, len(header).to_bytes(8, "little") + header) is None
    assert _missing(intake, tmp_path, b"\xff" * 100) is None


# One more byte than validation reads, with data that is not there.
LONG_HEADER = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust((16 << 20) + 1)
LONG = len(LONG_HEADER).to_bytes(8, "little") + LONG_HEADER


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (LONG, "has a header of 16,777,217 bytes and the limit is 16,777,216: save the adapter"),
        (LONG[:100], "is not a safetensors file, or it is damaged or cut short: send it again"),
    ],
    ids=["whole", "cut short"],
)
async def test_a_header_over_the_limit_is_not_waited_for(
    intake: Intake,
    registry: AdapterRegistry,
    settings: Settings,
    adapters: Path,
    content: bytes,
    refusal: str,
) -> None:
    weights = _write(adapters / "summary") / "adapter_model.safetensors"
    weights.write_bytes(content)
    assert AdapterFolder(intake, adapters).look_at("summary", None).missing is None
    async with watching(intake, settings):
        await _until(lambda: refusal in (_rejected(registry, "summary") or ""))


async def test_a_header_that_is_nested_too_deep_harms_no_other(
    intake: Intake, registry: AdapterRegistry, settings: Settings, adapters: Path
) -> None:
    header = b'{"a":' + b"[" * 100_000
    weights = _write(adapters / "summary") / "adapter_model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    _write(adapters / "other")
    async with watching(intake, settings):
        await _until(lambda: _rejected(registry, "summary") and _live(registry, "other"))
