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

from app.engine.effect import Effect
from app.errors import InvalidRequest, SoftserveError
from app.versions.disk import in_thread, telling_disk_failures
from app.versions.records import (
    Entry,
    Record,
    Watched,
    claimed,
    find_version,
    folder_gone,
    measured,
    older_version,
    published,
    removed,
    rolled_back,
)
from app.versions.store import Store, V
from softserve.schema.fields import name_refusal

T = TypeVar("T")


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

    `ready` holds a version ready to be used while it becomes live, and `measure` tells meanwhile
    what it changes; `let_go` hears of every version that is not live any more.
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

    def get(self, name: str) -> Record:
        """One name. Raises `InvalidRequest`, or that there is none."""
        self.check(name)
        return self.find(name, "name")

    def check(self, name: str) -> None:
        """Raises `InvalidRequest` for what cannot be a name."""
        if refusal := name_refusal(self.words.a_noun, name):
            raise InvalidRequest(refusal, param="name")

    def find(self, name: str, param: str, kind: str | None = None) -> Record:
        """The record of a name. Raises that there is none, with those of the kind that are near."""
        record = self.store.record(name)
        if record is not None and record.is_visible:
            return record
        names = [
            other.name
            for other in self.store.records.values()
            if other.live is not None and kind in {None, other.kind}
        ]
        close = difflib.get_close_matches(name, names, n=3)
        advice = (
            f"did you mean {' or '.join(close)}?" if close else f"GET {self.words.path} lists them"
        )
        raise self.words.not_found(
            f"no {self.words.noun} is called {name[:64]!r}: {advice}", param=param
        )

    def resolve(self, reference: str, param: str, kind: str | None = None) -> tuple[str, str]:
        """The name and the digest that `NAME` or `NAME@VERSION` stands for.

        A version is named by its digest or at least six of its first digits. Raises that there is
        no such name, no such version, or that it is not served.
        """
        name, pinned, prefix = reference.partition("@")
        record = self.find(name, param, kind)
        not_found = partial(self.words.not_found, param=param)
        if record.live is None:
            gone = f"its {self.words.watched} is gone: put it back, or roll back to a version"
            raise not_found(f"{name} is not served: {record.rejected or gone}")
        return name, find_version(record, prefix, not_found) if pinned else record.live

    async def publish(
        self,
        name: str,
        folder: Path,
        version: V,
        source: str,
        *,
        kind: str | None = None,
        watched: Watched | None = None,
    ) -> Record:
        """Make a staged, valid version the live one. `watched` is given by who watches folders.

        A version that is live already stays as it is. Raises a conflict where the name is live as
        another kind, and whatever `ready` and `measure` raise.
        """
        async with self.changing(name, version.digest) as record:
            if record.live == version.digest:
                return await self._save(await self._claim(record, source, watched, version))
            if record.live is not None and record.kind != kind:
                self._refuse_kind(record, kind)
            await self.in_thread(self.store.add, folder, version)
            async with self._ready(version):
                effect = await self._effect(version)
                entry = Entry(version.digest, datetime.now(UTC), source, effect)
                return await self._save(
                    published(
                        record,
                        entry,
                        kind=kind,
                        watched=watched,
                        retention=self._retention,
                        is_in_use=self.store.is_pinned,
                    )
                )

    async def rollback(self, name: str, version: str | None = None) -> Record:
        """Make an older version live again.

        Without `version` it is the one below the live one in the history, so that rolling back
        twice goes back two; of a retired name, the one that was live last. With `version` (a
        digest, or at least six of its first digits) it may also go forward.

        Raises that there is no such name or version, that there is nothing older, and whatever
        `ready` and `measure` raise.
        """
        async with self.changing(name):
            record = self.find(name, "name")
            if version is None:
                digest = older_version(record, partial(self.words.conflict, param="version"))
            else:
                not_found = partial(self.words.not_found, param="version")
                digest = find_version(record, version, not_found)
            if digest == record.live:
                return record
            target = self.store.version(digest)
            async with self._ready(target):
                back = rolled_back(record, digest)
                return await self._save(await self._with_effect(back, target))

    async def remove(self, name: str) -> Record:
        """Forget a name with its versions; what it was. Raises that there is none."""
        async with self.changing(name):
            record = self.find(name, "name")
            await self._save(removed(record))
            return record

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
        async with self._ready(live):
            return await self._with_effect(claim, live)

    async def _with_effect(self, record: Record, live: V) -> Record:
        """What its live version changes is on record, unless it became live before that was."""
        if record.effect is not None:
            return record
        return measured(record, await self._effect(live))

    async def _effect(self, version: V) -> Effect | None:
        return None if self._measure is None else await self._measure(version)

    async def _save(self, record: Record) -> Record:
        """Flip: the store keeps the record on disk first, then in memory."""
        if record != self.store.record(record.name):
            await self.in_thread(self.store.save, record)
        return record

    async def _clear(self, digests: set[str]) -> None:
        """Let go of what is not live any more, and delete what is in no history any more."""
        records = self.store.records.values()
        for digest in digests - {record.live for record in records}:
            self._let_go(digest)
        if forgotten := digests.difference(*(record.digests for record in records)):
            await self.in_thread(self.store.collect, forgotten)

    def _refuse_kind(self, record: Record, kind: str | None) -> None:
        kinds = self.words.kinds
        raise self.words.conflict(
            f"{record.name} is {kinds[record.kind or '']} and this is {kinds[kind or '']}: choose "
            "another name, or remove the old one first",
            param="name",
        )
