"""Names that replicas share through an origin: what one does, all have."""

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.errors import AdapterConflict, AdapterNotFound, OriginUnavailable
from app.versions.origin import following, garbage, replicas
from app.versions.origin.blobs import Blobs
from app.versions.origin.catalog import Catalog
from app.versions.origin.document import NumberedDocument
from softserve.schema.adapters import WEIGHTS_FILE
from tests.shared_names import MODEL, SharedNames, sharing, until
from tests.staged_versions import a_version


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "origin").mkdir()
    return f"file://{tmp_path}/origin"


def digest(text: str) -> str:
    return a_version(text).digest


def origin_folder(tmp_path: Path) -> Path:
    return tmp_path / "origin" / MODEL


def weights_in_origin(tmp_path: Path, text: str) -> Path:
    (file,) = origin_folder(tmp_path).glob(f"adapters/{digest(text)}-*/{WEIGHTS_FILE}")
    return file


# What one replica does, the others have.


async def test_a_change_is_live_everywhere(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a, sharing(tmp_path / "b", url) as b:
        await a.publish("mine", "one")
        await until(lambda: b.live("mine") == digest("one"))
        await b.publish("mine", "two")
        await until(lambda: a.live("mine") == digest("two"))
        await a.names.rollback("mine")
        await until(lambda: b.live("mine") == digest("one"))
        await until(lambda: b.settled == ["mine", "mine"])
        await b.names.split("mine", {digest("one"): 90, digest("two"): 10}, "none")
        await until(lambda: a.names.get("mine").split is not None)
        assert a.names.get("mine") == b.names.get("mine")
        await b.names.remove("mine")
        await until(lambda: a.names.store.record("mine") is None)
        assert a.names.store.records == b.names.store.records == {}


async def test_versions_are_fetched_when_they_are_wanted(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a:
        for text in ("one", "two", "three"):
            await a.publish("mine", text)
        async with sharing(tmp_path / "b", url) as b:
            # It tells of all of them, and has what is served.
            assert b.names.get("mine") == a.names.get("mine")
            assert [b.names.version(each) for each in b.names.get("mine").digests] == [
                a_version(text) for text in ("three", "two", "one")
            ]
            assert [b.names.store.has(digest(text)) for text in ("three", "two", "one")] == [
                True,
                False,
                False,
            ]
            await b.names.bring(f"mine@{digest('one')[:8]}", None)
            assert b.names.store.has(digest("one"))
            # What is made live is fetched first.
            await b.names.rollback("mine")
            assert b.names.store.has(digest("two"))


async def test_nothing_is_told_of_what_the_origin_has_forgotten(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
        await a.publish("mine", "two")
        b = SharedNames(tmp_path / "b", url)
        b.names.store.open()
        await b.names.bring("mine")
        assert b.names.version(digest("one")) == a_version("one")
        await a.names.remove("mine")
        # It has read that, and has not come to follow it.
        await b.origin.refresh()
        assert b.names.get("mine").digests == (digest("two"), digest("one"))
        assert b.names.version(digest("one")) is None
        assert b.names.version(digest("two")) == a_version("two")


async def test_what_a_replica_has_not_seen_is_asked_for_at_once(tmp_path: Path, url: str) -> None:
    b = SharedNames(tmp_path / "b", url)
    b.names.store.open()
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
        # Nothing follows here.
        await b.names.bring("mine")
        assert b.live("mine") == digest("one")
        await a.publish("mine", "two", live=False)
        await b.names.bring(f"mine@{digest('two')}#0")
        assert b.names.resolve(f"mine@{digest('two')}", "adapter") == ("mine", digest("two"))
        await b.names.bring("nothing", f"mine@{digest('three')}")
        with pytest.raises(AdapterNotFound):
            b.names.resolve("nothing", "adapter")


async def test_an_origin_begins_with_what_the_first_replica_has(tmp_path: Path, url: str) -> None:
    alone = SharedNames(tmp_path / "a", url)
    alone.names.shelf = None
    alone.names.store.open()
    await alone.publish("mine", "one")
    await alone.publish("mine", "two")
    alone.names.store.close()
    async with sharing(tmp_path / "a", url), sharing(tmp_path / "b", url) as b:
        assert [entry.digest for entry in b.names.get("mine").history] == [
            digest("two"),
            digest("one"),
        ]
        await b.names.rollback("mine")
        assert b.live("mine") == digest("one")


async def test_who_begins_second_takes_what_the_first_has(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own in "ab":
        alone = SharedNames(tmp_path / own, url)
        alone.names.shelf = None
        alone.names.store.open()
        await alone.publish(f"of-{own}", own)
        alone.names.store.close()
    async with sharing(tmp_path / "a", url):
        pass
    catalog = origin_folder(tmp_path) / "catalog"
    catalog.rename(tmp_path / "hidden")
    b = SharedNames(tmp_path / "b", url)
    begin = b.origin.begin

    async def come_second(catalog_of_b: Catalog) -> bool:
        (tmp_path / "hidden").rename(catalog)
        return await begin(catalog_of_b)

    monkeypatch.setattr(b.origin, "begin", come_second)
    b.names.store.open()
    # Before it has begun, nothing can be changed.
    with pytest.raises(OriginUnavailable, match="no catalog yet"):
        await b.publish("of-b", "c")
    following = asyncio.create_task(b.follower.run())
    await until(lambda: list(b.names.store.records) == ["of-a"])
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_what_only_a_replica_has_goes(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
    alone = SharedNames(tmp_path / "b", url)
    alone.names.shelf = None
    alone.names.store.open()
    await alone.publish("own", "two")
    alone.names.store.close()
    async with sharing(tmp_path / "b", url) as b:
        assert list(b.names.store.records) == ["mine"]
        assert not b.names.store.has(digest("two"))


# Changes at the same time.


async def test_contended_changes_are_all_made(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url, 100) as a, sharing(tmp_path / "b", url, 100) as b:

        async def change(replica: SharedNames, own: str) -> None:
            for number in range(15):
                await replica.publish("shared", f"{own}{number}")
                await replica.publish(f"of-{own}", f"{own}{number}")

        await asyncio.gather(change(a, "a"), change(b, "b"))
        await until(lambda: a.names.store.records == b.names.store.records)
        texts = [f"{own}{number}" for own in "ab" for number in range(15)]
        assert sorted(a.names.get("shared").digests) == sorted(map(digest, texts))
        assert a.origin.catalog.generation == 60


async def test_who_comes_second_is_told_what_does_not_fit_any_more(
    tmp_path: Path, url: str
) -> None:
    async with sharing(tmp_path / "a", url) as a, sharing(tmp_path / "b", url) as b:
        await a.publish("mine", "one")
        await a.publish("mine", "two")
        await until(lambda: b.live("mine") == digest("two"))
        weights = {digest("one"): 1, digest("two"): 1}
        outcomes = await asyncio.gather(
            a.names.split("mine", weights, "none"),
            b.publish("mine", "three"),
            return_exceptions=True,
        )
        # Either order is right, and each has its own outcome.
        if isinstance(outcomes[1], AdapterConflict):
            assert a.names.get("mine").split is not None
        else:
            assert a.names.get("mine").live == digest("three") or a.names.get("mine").split


async def test_a_change_whose_answer_got_lost_is_made_once(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(tmp_path / "a", url) as a:
        for text in ("one", "two", "three"):
            await a.publish("mine", text)
        swap = NumberedDocument.swap

        async def lose_the_answer(self: NumberedDocument, data: bytes, seen: Any) -> object:
            await swap(self, data, seen)
            monkeypatch.undo()
            raise OriginUnavailable("no answer")

        monkeypatch.setattr(NumberedDocument, "swap", lose_the_answer)
        # Twice would lead to `one`.
        await a.names.rollback("mine")
        assert a.live("mine") == digest("two")


# What goes wrong.


async def test_out_of_reach_what_is_live_stays_live(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a, sharing(tmp_path / "b", url) as b:
        await a.publish("mine", "one")
        await until(lambda: b.live("mine") == digest("one"))
        (tmp_path / "origin").rename(tmp_path / "away")
        with pytest.raises(OriginUnavailable, match="nothing has changed"):
            await a.publish("mine", "two")
        with pytest.raises(OriginUnavailable):
            await b.names.rollback("mine")
        await until(lambda: not b.origin.is_reachable)
        assert a.live("mine") == b.live("mine") == digest("one")
        assert b.names.resolve("mine", "adapter") == ("mine", digest("one"))
        assert not a.names.store.has(digest("two"))
        assert not a.follower.publishes
        (tmp_path / "away").rename(tmp_path / "origin")
        await until(lambda: a.origin.is_reachable and b.origin.is_reachable)
        await b.publish("mine", "two")
        await until(lambda: a.live("mine") == digest("two"))


async def test_a_start_out_of_reach_serves_what_is_here(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
    (tmp_path / "origin").rename(tmp_path / "away")
    async with sharing(tmp_path / "a", url) as a:
        assert a.live("mine") == digest("one")
        (tmp_path / "away").rename(tmp_path / "origin")
        async with sharing(tmp_path / "b", url) as b:
            await b.publish("mine", "two")
        await until(lambda: a.live("mine") == digest("two"))


async def test_a_catalog_that_is_gone_takes_nothing_with_it(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
        for file in (origin_folder(tmp_path) / "catalog").iterdir():
            file.unlink()
        with pytest.raises(OriginUnavailable, match="lost its catalog"):
            await a.publish("mine", "two")
        await until(lambda: not a.origin.is_reachable)
        assert a.live("mine") == digest("one")


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
async def test_a_damaged_version_is_refused_until_it_is_added_again(
    tmp_path: Path, url: str, damage: str
) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
        file = weights_in_origin(tmp_path, "one")
        content = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(content[:-1] if damage == "cut" else content.replace(b"one", b"two"))
        async with sharing(tmp_path / "b", url) as b:
            assert b.live("mine") is None
            await until(lambda: b.follower.behind.get("adapter mine"))
            assert "damaged in the origin" in b.follower.behind["adapter mine"]
            await a.publish("mine", "one")
            await until(lambda: b.live("mine") == digest("one"))
            assert b.follower.behind == {}


async def test_what_a_replica_does_not_take_stays_as_it_was_there(tmp_path: Path, url: str) -> None:
    async with (
        sharing(tmp_path / "a", url) as a,
        sharing(tmp_path / "b", url, refused="two") as b,
    ):
        await a.publish("mine", "one")
        await until(lambda: b.live("mine") == digest("one"))
        await a.publish("mine", "two")
        await until(lambda: b.follower.behind.get("adapter mine"))
        assert b.live("mine") == digest("one")
        await a.publish("other", "three")
        await until(lambda: b.live("other") == digest("three"))
        served = await a.follower.wait_for_all(a.names, "mine")
        assert [(each.is_served, each.why) for each in served] == [
            (True, ""),
            (False, "this replica does not take it"),
        ]
        await a.names.rollback("mine")
        await until(lambda: b.follower.behind == {})


async def test_a_catalog_that_was_not_written_to_its_end(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a, sharing(tmp_path / "b", url) as b:
        await a.publish("mine", "one")
        folder = origin_folder(tmp_path) / "catalog"
        newest = max(folder.iterdir())
        number = int(newest.stem)
        (folder / f"{number + 1:012d}.json").write_bytes(newest.read_bytes()[:-10])
        await b.publish("mine", "two")
        await until(lambda: a.live("mine") == digest("two"))


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"[]\n",
        b'{"format": 2}\n',
        json.dumps({"adapters": {"records": {"../up": {"name": "../up"}}}}).encode() + b"\n",
        json.dumps({"adapters": {"records": {"a": {"name": "b"}}}}).encode() + b"\n",
        json.dumps({"adapters": {"versions": {"aa": {"place": "../aa"}}}}).encode() + b"\n",
        json.dumps({"adapters": {"records": {"a": {"name": "a", "live": "aa"}}}}).encode() + b"\n",
    ],
)
async def test_a_catalog_that_is_none_changes_nothing(
    tmp_path: Path, url: str, content: bytes
) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
        folder = origin_folder(tmp_path) / "catalog"
        number = int(max(folder.iterdir()).stem)
        (folder / f"{number + 1:012d}.json").write_bytes(content)
        await until(lambda: not a.origin.is_reachable)
        assert a.live("mine") == digest("one")
        with pytest.raises(OriginUnavailable, match="cannot be read"):
            await a.publish("mine", "two")


# Who is there, and what nobody needs any more.


async def test_the_first_replica_publishes(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a:
        assert a.follower.publishes
        async with sharing(tmp_path / "b", url) as b:
            assert not b.follower.publishes
            assert a.follower.publishes
    async with sharing(tmp_path / "b", url) as b:
        await until(lambda: b.follower.publishes)


async def test_who_is_silent_is_not_waited_for(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
        dead = SharedNames(tmp_path / "b", url)
        await dead.follower.replicas.beat(0, {})
        monkeypatch.setattr(replicas, "DEAD_SECONDS", 0.5)
        monkeypatch.setattr(following, "BEAT_SECONDS", 0.1)
        served = await a.follower.wait_for_all(a.names, "mine")
        assert [each.replica.id for each in served] == [a.follower.replicas.id]


async def test_what_others_forgot_while_it_was_in_use_goes_later(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a, sharing(tmp_path / "b", url) as b:
        await a.publish("mine", "one")
        await until(lambda: b.live("mine") == digest("one"))
        with b.names.store.pinned(digest("one")):
            await a.names.remove("mine")
            await until(lambda: b.names.store.record("mine") is None)
            assert b.names.store.has(digest("one"))
        await b.follower._tidy()
        assert not b.names.store.has(digest("one"))


async def test_garbage_is_collected_by_age(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(tmp_path / "a", url, retention=1) as a:
        for text in ("one", "two", "three"):
            await a.publish("mine", text)
        versions = origin_folder(tmp_path) / "adapters"
        assert await garbage.collect(a.origin, datetime.now(UTC)) == 0
        assert len([each for each in versions.glob("*/*") if each.is_file()]) == 6
        later = datetime.now(UTC) + garbage.KEPT + timedelta(seconds=1)
        assert await garbage.collect(a.origin, later) == 5
        (kept,) = {each.parent.name for each in versions.glob("*/*")}
        assert kept.startswith(digest("three"))
        async with sharing(tmp_path / "b", url) as b:
            assert b.live("mine") == digest("three")


async def test_what_a_killed_writer_left_in_a_folder_goes(tmp_path: Path, url: str) -> None:
    async with sharing(tmp_path / "a", url) as a:
        await a.publish("mine", "one")
        left = origin_folder(tmp_path) / "adapters" / "left"
        left.mkdir()
        (left / f"{WEIGHTS_FILE}#1").touch()
        later = datetime.now(UTC) + garbage.KEPT + timedelta(seconds=1)
        await garbage.collect(a.origin, datetime.now(UTC))
        assert len(list(left.iterdir())) == 1
        await garbage.collect(a.origin, later)
        assert not left.exists()
        assert weights_in_origin(tmp_path, "one").exists()


async def test_old_catalogs_are_trimmed_and_the_newest_stays(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(tmp_path / "a", url) as a:
        for text in ("one", "two", "three"):
            await a.publish("mine", text)
        catalogs = origin_folder(tmp_path) / "catalog"
        before = sorted(catalogs.iterdir())
        await a.origin.trim()
        assert sorted(catalogs.iterdir()) == before
        monkeypatch.setattr("app.versions.origin.document.KEPT_SECONDS", -1.0)
        await a.origin.trim()
        assert list(catalogs.iterdir()) == before[-1:]
        await a.publish("mine", "four")
        assert a.live("mine") == digest("four")


async def test_a_folder_that_is_not_there_is_out_of_reach(tmp_path: Path) -> None:
    blobs = Blobs(f"file://{tmp_path}/missing")
    for attempt in (blobs.read("a"), blobs.list("a"), blobs.write("a", b""), blobs.delete(["a"])):
        with pytest.raises(OriginUnavailable):
            await attempt
    assert not (tmp_path / "missing").exists()


async def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    folder = tmp_path / "our models é~%20"
    folder.mkdir()
    url = f"file://{folder}".replace("%", "%25")
    async with sharing(tmp_path / "a", url) as a, sharing(tmp_path / "b", url) as b:
        await a.publish("mine", "one")
        await until(lambda: b.live("mine") == digest("one"))
    assert (folder / MODEL / "catalog").is_dir()


async def test_a_storm_of_changes_from_both(tmp_path: Path, url: str) -> None:
    """Both change a few names at random: they end alike, and everything that is served is here."""
    async with sharing(tmp_path / "a", url, 3) as a, sharing(tmp_path / "b", url, 3) as b:

        async def change(replica: SharedNames, seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 (which changes)
            for _ in range(25):
                name, text = chance.choice("xyz"), chance.choice("abcdef")
                try:
                    match chance.randrange(5):
                        case 0:
                            await replica.names.rollback(name)
                        case 1:
                            await replica.names.remove(name)
                        case _:
                            await replica.publish(name, text)
                except (AdapterConflict, AdapterNotFound):
                    continue

        await asyncio.gather(change(a, 1), change(b, 2))
        await until(lambda: a.follower.behind == b.follower.behind == {})
        await until(lambda: a.origin.catalog == b.origin.catalog)
        await until(lambda: a.names.store.records == b.names.store.records)
        for replica in (a, b):
            for record in replica.names.store.records.values():
                assert all(map(replica.names.store.has, record.served))
