"""What is on disk is whole, whatever happened, and only what is pointed to stays."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.adapters.version import AdapterVersion
from app.engine.effect import Effect
from app.errors import StartError
from app.settings import Settings
from app.versions import store as store_module
from app.versions.location import store_folder
from app.versions.records import Entry, Record, Watched, measured
from app.versions.shadows import Shadow
from app.versions.splits import Split
from app.versions.store import Store
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from tests.staged_versions import a_version, adapter_store, stage, text_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store[AdapterVersion]:
    store = adapter_store(tmp_path / "store")
    store.open()
    return store


def _reopened(store: Store[AdapterVersion]) -> Store[AdapterVersion]:
    store.close()
    again = adapter_store(store._folder)
    again.open()
    return again


def _add(store: Store[AdapterVersion], text: str) -> AdapterVersion:
    with store.staging() as folder:
        version = stage(folder, text)
        store.add(folder, version)
    return version


def _record(name: str, *versions: AdapterVersion, watched: Watched | None = None) -> Record:
    """The first is live."""
    history = tuple(Entry(version.digest, NOW, "upload") for version in versions)
    return Record(name, "lora", versions[0].digest, history, watched)


def _kept(store: Store[AdapterVersion]) -> set[str]:
    return {path.name for path in (store._folder / "versions").iterdir()}


def _staged(store: Store[AdapterVersion]) -> list[Path]:
    return list((store._folder / "staging").iterdir())


def test_what_was_saved_is_there_again(store: Store[AdapterVersion]) -> None:
    new, old = _add(store, "new"), _add(store, "old")
    record = _record("a", new, old, watched=Watched("12-34", rejected="too large"))
    store.save(record)
    again = _reopened(store)
    assert again.records == {"a": record}
    assert (again.version(new.digest), again.version(old.digest)) == (new, old)
    assert text_of(again.folder(new.digest)) == "new"


def test_an_effect_is_kept(store: Store[AdapterVersion]) -> None:
    effect = Effect(0.1 + 0.2, changed=True)
    new, old = _add(store, "new"), _add(store, "old")
    store.save(measured(_record("a", new, old), new.digest, effect))
    assert [entry.effect for entry in _reopened(store).records["a"].history] == [effect, None]


def test_split_and_shadow_are_kept(store: Store[AdapterVersion]) -> None:
    new, old = _add(store, "new"), _add(store, "old")
    record = replace(
        _record("a", new, old),
        split=Split({new.digest: 90, old.digest: 10}, "session"),
        shadow=Shadow(old.digest, 0.5, datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
    )
    store.save(record)
    assert _reopened(store).records == {"a": record}


def test_a_record_of_an_older_server_has_no_effects(store: Store[AdapterVersion]) -> None:
    record = _record("a", _add(store, "a"))
    store.save(measured(record, record.digests[0], Effect(0.5, changed=True)))
    file = store._folder / "names" / "a.json"
    saved = json.loads(file.read_bytes())
    del saved["history"][0]["effect"]
    file.write_text(json.dumps(saved))
    assert _reopened(store).records == {"a": record}


def test_a_version_is_private_and_never_written_again(store: Store[AdapterVersion]) -> None:
    version = _add(store, "a")
    folder = store.folder(version.digest)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o444}
    assert stat.S_IMODE(store._folder.stat().st_mode) == 0o700
    before = (folder / WEIGHTS_FILE).stat()
    _add(store, "a")
    assert (folder / WEIGHTS_FILE).stat() == before
    assert _staged(store) == []


def test_a_version_that_was_damaged_meanwhile_is_replaced(store: Store[AdapterVersion]) -> None:
    version = _add(store, "a")
    (store.folder(version.digest) / WEIGHTS_FILE).unlink()
    _add(store, "a")
    assert text_of(store.folder(version.digest)) == "a"


def test_one_server_at_a_time(store: Store[AdapterVersion]) -> None:
    other = adapter_store(store._folder)
    with pytest.raises(StartError) as raised:
        other.open()
    assert raised.value.message == (
        f"another server uses the adapter store {store._folder}: stop it, or give this one a store "
        "of its own with --adapter-store"
    )
    store.close()
    other.open()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"cannot be written .* --adapter-store"):
        adapter_store(tmp_path / "file" / "store").open()


def test_what_was_left_half_made_is_removed(store: Store[AdapterVersion]) -> None:
    stage(Path(shutil.copytree(_some_folder(store), store._folder / "staging" / "left")), "half")
    again = _reopened(store)
    assert _staged(again) == []


def _some_folder(store: Store[AdapterVersion]) -> Path:
    folder = store._folder / "staging" / "empty"
    folder.mkdir()
    return folder


def test_what_nothing_points_to_is_collected(store: Store[AdapterVersion]) -> None:
    live, pinned, forgotten = (_add(store, text) for text in ("live", "pinned", "forgotten"))
    store.save(_record("a", live))
    everything = [live.digest, pinned.digest, forgotten.digest]
    with store.pinned(pinned.digest):
        store.collect(everything)
        assert _kept(store) == {live.digest, pinned.digest}
    assert _kept(store) == {live.digest, pinned.digest}
    store.collect(everything)
    assert _kept(store) == {live.digest}
    assert _staged(store) == []


def test_a_version_of_two_names_stays_for_the_second(store: Store[AdapterVersion]) -> None:
    version = _add(store, "both")
    store.save(_record("a", version))
    store.save(_record("b", version))
    store.save(Record("a"))
    store.collect([version.digest])
    assert _kept(store) == {version.digest}
    store.save(Record("b"))
    store.collect([version.digest])
    assert _kept(store) == set()


def test_a_version_that_no_record_names_is_gone_when_opened(store: Store[AdapterVersion]) -> None:
    live = _add(store, "live")
    _add(store, "never published")
    store.save(_record("a", live))
    assert _kept(_reopened(store)) == {live.digest}


def test_a_deleted_record_is_gone(store: Store[AdapterVersion]) -> None:
    store.save(_record("a", _add(store, "a")))
    store.save(Record("a"))
    store.save(Record("a"))
    assert _reopened(store).records == {}


def test_a_truncated_record_harms_no_other(store: Store[AdapterVersion]) -> None:
    a, b = _add(store, "a"), _add(store, "b")
    store.save(_record("a", a))
    store.save(_record("b", b))
    file = store._folder / "names" / "a.json"
    file.write_bytes(file.read_bytes()[:-20])
    again = _reopened(store)
    assert again.records["b"] == _record("b", b)
    assert again.records["a"] == Record(
        "a", damaged="its record in the store is damaged: add the adapter again"
    )
    # It may be repaired by hand: nothing that it may name is deleted.
    assert _kept(again) == {a.digest, b.digest}


@pytest.mark.parametrize("damage", ["missing", "truncated", "no version.json", "another version"])
def test_a_damaged_live_version_is_not_served(store: Store[AdapterVersion], damage: str) -> None:
    live, old = _add(store, "live"), _add(store, "old")
    store.save(_record("a", live, old, watched=Watched("12-34", live.digest)))
    folder = store.folder(live.digest)
    match damage:
        case "missing":
            (folder / CONFIG_FILE).unlink()
        case "truncated":
            (folder / WEIGHTS_FILE).chmod(0o600)
            os.truncate(folder / WEIGHTS_FILE, 2)
        case "no version.json":
            (folder / "version.json").unlink()
        case "another version":
            shutil.copy(store.folder(old.digest) / "version.json", store._folder / "copy")
            (store._folder / "copy").rename(folder / "version.json")
    record = _reopened(store).records["a"]
    assert (record.live, record.digests) == (None, (old.digest,))
    assert record.damaged == (
        f"its live version {live.digest[:12]} is damaged in the store: add it again"
    )
    # So that its folder, if it is still there, is published again.
    assert record.watched is None


def test_a_damaged_old_version_only_leaves_the_history(store: Store[AdapterVersion]) -> None:
    live, old = _add(store, "live"), _add(store, "old")
    store.save(_record("a", live, old))
    (store.folder(old.digest) / WEIGHTS_FILE).unlink()
    assert _reopened(store).records == {"a": _record("a", live)}


def test_a_thousand_adapters(store: Store[AdapterVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "sync", lambda path: None)
    for number in range(1000):
        store.save(_record(f"adapter-{number}", _add(store, str(number))))
    store.close()
    again = adapter_store(store._folder)
    started = time.perf_counter()
    again.open()
    seconds = time.perf_counter() - started
    assert len(again.records) == 1000
    assert seconds < 5


def test_a_store_for_each_model(tmp_path: Path) -> None:
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "b" / "model").mkdir(parents=True)
    models = [
        None,
        "org/model",
        "other/model",
        str(tmp_path / "a/model"),
        str(tmp_path / "b/model"),
    ]
    folders = [store_folder(Settings(model=model)) for model in models]
    assert len(set(folders)) == len(models)
    assert len({folder.parent for folder in folders}) == 1
    assert store_folder(Settings(adapter_store=tmp_path)) == tmp_path


# Publishes version after version of one name, and says after each that it is live.
PUBLISHER = """
import sys
from pathlib import Path
from datetime import UTC, datetime
from app.versions.records import Entry, Record
from tests.staged_versions import adapter_store, stage

store = adapter_store(Path(sys.argv[1]))
store.open()
record = store.record("a") or Record("a", "lora")
number = int(sys.argv[2])
while True:
    with store.staging() as folder:
        version = stage(folder, str(number))
        with store.pinned(version.digest):
            store.add(folder, version)
            history = (Entry(version.digest, datetime.now(UTC), str(number)), *record.history)
            record = Record("a", "lora", version.digest, history[:3])
            store.save(record)
    store.collect([entry.digest for entry in history[3:]])
    print(number, flush=True)
    number += 1
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What was live at the last word of the killed process is live, or what it flipped to next."""
    moments = random.Random(7)  # noqa: S311 (it is a test)
    folder = tmp_path / "store"
    next_number = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(folder), str(next_number)],
            stdout=subprocess.PIPE,
            text=True,
        ) as publisher:
            assert publisher.stdout is not None
            said = [int(publisher.stdout.readline()) for _ in range(moments.randint(1, 9))]
            time.sleep(moments.random() / 50)
            publisher.send_signal(signal.SIGKILL)
            said += [int(line) for line in publisher.stdout.read().split()]
        store = adapter_store(folder)
        store.open()
        record = store.records["a"]
        numbers = [int(entry.source) for entry in record.history]
        assert record.damaged is None
        assert numbers[0] in {said[-1], said[-1] + 1}
        assert numbers == list(range(numbers[0], max(-1, numbers[0] - 3), -1))
        assert record.digests == tuple(a_version(str(number)).digest for number in numbers)
        for number, digest in zip(numbers, record.digests, strict=True):
            assert text_of(store.folder(digest)) == str(number)
        assert _kept(store) == set(record.digests)
        assert _staged(store) == []
        store.close()
        next_number = numbers[0] + 1
