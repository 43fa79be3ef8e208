"""Names that point at versions: on disk first, and then in memory.

What becomes live is put into the store, made ready by its owner, and only then does the pointer
flip. Whatever fails on the way leaves it where it was.
"""

import asyncio
import difflib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import structlog

from app.engine.effect import Effect
from app.errors import InvalidRequest, SoftserveError
from app.versions.disk import in_thread, telling_disk_failures
from app.versions.records import (
    Entry,
    Record,
    Watched,
    claimed,
    find_version,
    find_weights,
    folder_gone,
    measured,
    next_to_promote,
    older_version,
    promoted,
    published,
    put_beside,
    removed,
    rolled_back,
    shadowed,
    shared,
)
from app.versions.shadows import Shadow, ShadowTally
from app.versions.splits import Asker, Split
from app.versions.store import Store, V
from softserve.schema.fields import name_refusal
from softserve.schema.versions import Sticky

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Which names may be told to whoever asks.
Visible = Callable[[str], bool]


def everything(name: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Words:
    """How adapters and templates differ in what is said of them."""

    a_noun: str
    noun: str
    watched: str
    path: str
    not_found: type[SoftserveError]
    conflict: type[SoftserveError]
    kinds: Mapping[str, str] = field(default_factory=dict)


class Names(Generic[V]):
    """The names of one store.

    Changes of one name happen one after the other, changes of different names at the same time.
    A caller that is cancelled leaves either the old or the new state.

    `ready` holds a version ready to be used before requests may run on it, and `measure` tells
    meanwhile what it changes; `let_go` hears of every version on which none may run any more.
    `num_swaps` counts how often another version became live.
    """

    def __init__(
        self,
        store: Store[V],
        words: Words,
        retention: int,
        ready: Callable[[V], AbstractAsyncContextManager[object]],
        let_go: Callable[[str], object],
        measure: Callable[[V], Awaitable[Effect | None]] | None = None,
    ) -> None:
        self.store = store
        self.words = words
        self._retention = retention
        self._ready = ready
        self._let_go = let_go
        self._measure = measure
        self.num_swaps = 0
        self._tallies: dict[str, ShadowTally] = {}
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def live(self) -> tuple[str, ...]:
        """The names that are served."""
        return tuple(record.name for record in self.store.records.values() if record.live)

    def list(self) -> tuple[Record, ...]:
        """Every name, in their order."""
        records = sorted(self.store.records.values(), key=lambda record: record.name)
        return tuple(record for record in records if record.is_visible)

    def get(self, name: str, visible: Visible = everything) -> Record:
        """One name. Raises `InvalidRequest`, or that there is none."""
        self.check(name)
        return self.find(name, "name", visible=visible)

    def check(self, name: str) -> None:
        """Raises `InvalidRequest` for what cannot be a name."""
        if refusal := name_refusal(self.words.a_noun, name):
            raise InvalidRequest(refusal, param="name")

    def find(
        self,
        name: str,
        param: str,
        kind: str | None = None,
        visible: Visible = everything,
    ) -> Record:
        """The record of a name.

        Raises that there is none, with those of the kind that are near and visible.
        """
        record = self.store.record(name)
        if record is not None and record.is_visible:
            return record
        names = [
            other.name
            for other in self.store.records.values()
            if other.live is not None and kind in {None, other.kind} and visible(other.name)
        ]
        close = difflib.get_close_matches(name, names, n=3)
        advice = (
            f"did you mean {' or '.join(close)}?" if close else f"GET {self.words.path} lists them"
        )
        raise self.words.not_found(
            f"no {self.words.noun} is called {name[:64]!r}: {advice}", param=param
        )

    def resolve(
        self,
        reference: str,
        param: str,
        kind: str | None = None,
        visible: Visible = everything,
        asker: Asker | None = None,
    ) -> tuple[str, str]:
        """The name and the digest that `NAME` or `NAME@VERSION` stands for.

        A version is named by its digest or at least six of its first digits. Of a split, the bare
        name is what its `asker` gets; None is the server itself, which gets the live version.
        Raises that there is no such name, no such version, or that it is not served.
        """
        name, pinned, prefix = reference.partition("@")
        record = self.find(name, param, kind, visible)
        not_found = partial(self.words.not_found, param=param)
        if record.live is None:
            gone = f"its {self.words.watched} is gone: put it back, or roll back to a version"
            raise not_found(f"{name} is not served: {record.rejected or gone}")
        if pinned:
            return name, find_version(record, prefix, not_found)
        if record.split is None or asker is None:
            return name, record.live
        return name, record.split.choose(f"{self.words.noun} {name}", asker)

    async def publish(
        self,
        name: str,
        folder: Path,
        version: V,
        source: str,
        *,
        kind: str | None = None,
        watched: Watched | None = None,
        live: bool = True,
    ) -> Record:
        """Make a staged, valid version the live one. `watched` is given by who watches folders.

        A version that is live already stays as it is. Without `live` it is only put beside the live
        one. Raises a conflict where the name is live as another kind, is split, or has no live
        version beside which one could be put, and whatever `ready` and `measure` raise.
        """
        async with self.changing(name, version.digest) as record:
            if record.live == version.digest:
                return await self._save(await self._claim(record, source, watched, version))
            self._check_can_take(record, kind, live=live)
            await self.in_thread(self.store.add, folder, version)
            async with self._ready(version):
                effect = await self._effect(version)
                entry = Entry(version.digest, datetime.now(UTC), source, effect)
                change = partial(published, kind=kind, watched=watched) if live else put_beside
                return await self._save(
                    change(record, entry, retention=self._retention, is_in_use=self.store.is_pinned)
                )

    async def rollback(self, name: str, version: str | None = None) -> Record:
        """Make an older version live again.

        Without `version` it is the one below the live one in the history, so that rolling back
        twice goes back two; of a retired name, the one that was live last; of a split, the one that
        was live when it began. With `version` (a digest, or at least six of its first digits) it
        may also go forward.

        Raises that there is no such name or version, that there is nothing older, and whatever
        `ready` and `measure` raise.
        """
        async with self.changing(name):
            record = self.find(name, "name")
            if version is not None:
                digest = self._find_version(record, version)
            elif record.split is not None and record.live is not None:
                digest = record.live
            else:
                digest = older_version(record, partial(self.words.conflict, param="version"))
            return await self._make_live(record, rolled_back(record, digest), digest)

    async def promote(self, name: str, version: str | None = None) -> Record:
        """Make a version live that was tried beside the live one; what was live comes below it.

        Without `version` it is the one other version of a split, or else the shadow. Raises as
        `rollback` does, and a conflict where no version or several can be meant.
        """
        async with self.changing(name):
            record = self.find(name, "name")
            if version is not None:
                digest = self._find_version(record, version)
            else:
                digest = next_to_promote(record, partial(self.words.conflict, param="version"))
            return await self._make_live(record, promoted(record, digest), digest)

    async def split(self, name: str, versions: Mapping[str, int], sticky: Sticky) -> Record:
        """Have the bare name mean several versions by weight, each of them proven ready first.

        A version is named by its digest or at least six of its first digits. Raises that there is
        no such name or version, `InvalidRequest` for what is no split, and whatever `ready` and
        `measure` raise.
        """
        async with self.changing(name):
            record = self.find(name, "name")
            not_found = partial(self.words.not_found, param="versions")
            split = Split(find_weights(record, versions, not_found), sticky)
            # One after the other: there may be no room for all of them at once.
            for digest in split.weights:
                record = await self._proven(record, digest)
            record = await self._save(shared(record, split))
        log.info(f"{self.words.a_noun} is split", name=name, versions=split.weights, sticky=sticky)
        return record

    async def shadow(self, name: str, version: str, percent: float) -> Record:
        """Have a version get copies of requests. It begins anew where it was so before.

        Raises that there is no such name or version, a conflict where it is the live one, and
        whatever `ready` and `measure` raise.
        """
        async with self.changing(name):
            record = self.find(name, "name")
            digest = self._find_version(record, version)
            if record.live in {None, digest}:
                raise self.words.conflict(
                    f"a shadow is compared with the live version of {name}, and has to be another: "
                    "name another version, or make one live first",
                    param="version",
                )
            record = await self._proven(record, digest)
            shadow = Shadow(digest, percent, datetime.now(UTC))
            record = await self._save(shadowed(record, shadow))
        log.info(f"{self.words.a_noun} has a shadow", name=name, version=digest, percent=percent)
        return record

    async def end_shadow(self, name: str) -> Record:
        """No version gets copies of requests. Raises that there is no such name."""
        async with self.changing(name):
            return await self._save(shadowed(self.find(name, "name"), None))

    async def remove(self, name: str) -> Record:
        """Forget a name with its versions; what it was. Raises that there is none."""
        async with self.changing(name):
            record = self.find(name, "name")
            await self._save(removed(record))
            return record

    def tally(self, name: str) -> ShadowTally:
        """What came of a shadow's copies since it began, or since the server started."""
        return self._tallies.setdefault(name, ShadowTally())

    def watched(self) -> dict[str, Watched]:
        """What was acted upon in the watched folder, by name."""
        return {
            name: record.watched
            for name, record in self.store.records.items()
            if record.watched is not None
        }

    async def mark_watched(self, name: str, watched: Watched) -> None:
        """Remember what the watched folder holds, where nothing else follows from it."""
        async with self.changing(name) as record:
            await self._save(replace(record, watched=watched))

    async def forget_watched(self, name: str) -> None:
        """It has gone from the watched folder."""
        async with self.changing(name) as record:
            await self._save(folder_gone(record))

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run blocking work on the store off the event loop. Raises `StoreUnavailable`."""
        return await in_thread(self.store.title, work, *args)

    @asynccontextmanager
    async def staging(self) -> AsyncIterator[Path]:
        """An empty private folder on the store's file system, gone at the end."""
        with telling_disk_failures(self.store.title), self.store.staging() as folder:
            try:
                yield folder
            finally:
                # Deleting a gigabyte takes a while.
                await self.in_thread(partial(shutil.rmtree, folder, ignore_errors=True))

    @asynccontextmanager
    async def changing(self, name: str, *added: str) -> AsyncIterator[Record]:
        """The turn to change a name. Afterwards, what nothing points to any more is cleared."""
        self.check(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            record = self.store.record(name) or Record(name)
            try:
                with ExitStack() as stack:
                    for digest in added:
                        stack.enter_context(self.store.pinned(digest))
                    yield record
            finally:
                await self._clear({*record.digests, *added})

    async def _claim(self, record: Record, source: str, watched: Watched | None, live: V) -> Record:
        """The record once its live version is published again, which is loaded to be measured."""
        claim = claimed(record, source, watched)
        if claim.effect is not None or self._measure is None:
            return claim
        return await self._proven(claim, live.digest)

    async def _make_live(self, before: Record, after: Record, digest: str) -> Record:
        if after == before:
            return before
        version = self.store.version(digest)
        async with self._ready(version):
            return await self._save(await self._with_effect(after, version))

    async def _proven(self, record: Record, digest: str) -> Record:
        """The record once a version of its history was ready to be used."""
        version = self.store.version(digest)
        async with self._ready(version):
            return await self._with_effect(record, version)

    async def _with_effect(self, record: Record, version: V) -> Record:
        """What a version changes is on record, unless it came to its name before that was."""
        if record.effect_of(version.digest) is not None:
            return record
        return measured(record, version.digest, await self._effect(version))

    async def _effect(self, version: V) -> Effect | None:
        return None if self._measure is None else await self._measure(version)

    async def _save(self, record: Record) -> Record:
        """Flip: the store keeps the record on disk first, then in memory."""
        before = self.store.record(record.name)
        if record != before:
            await self.in_thread(self.store.save, record)
            live_before = None if before is None else before.live
            self.num_swaps += record.live not in {None, live_before}
        if before is not None and record.shadow != before.shadow:
            self._tallies.pop(record.name, None)
        return record

    async def _clear(self, digests: set[str]) -> None:
        """Let go of what is not served any more, and delete what is in no history any more."""
        records = self.store.records.values()
        for digest in digests.difference(*(record.served for record in records)):
            self._let_go(digest)
        if forgotten := digests.difference(*(record.digests for record in records)):
            await self.in_thread(self.store.collect, forgotten)

    def _find_version(self, record: Record, version: str) -> str:
        return find_version(record, version, partial(self.words.not_found, param="version"))

    def _check_can_take(self, record: Record, kind: str | None, *, live: bool) -> None:
        """Raises a conflict where a name cannot take a version of this kind."""
        kinds, conflict = self.words.kinds, partial(self.words.conflict, param="name")
        if record.live is None and not live:
            raise conflict(
                f"{record.name} has no live version beside which another could be put: leave "
                "live=false (--no-live) out"
            )
        if record.live is not None and record.kind != kind:
            raise conflict(
                f"{record.name} is {kinds[record.kind or '']} and this is {kinds[kind or '']}: "
                "choose another name, or remove the old one first"
            )
        if record.split is not None and live:
            raise conflict(
                f"{record.name} is split between versions, and a new live one would end that: "
                "promote one or roll back first, or put this one beside them (live=false, "
                "--no-live)"
            )
