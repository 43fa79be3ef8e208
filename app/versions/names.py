"""Names that point at versions: on disk first, and then in memory.

What becomes live is put into the store, made ready by its owner, and only then does the pointer
flip. Whatever fails on the way leaves it where it was.

Where an origin has the pointers, it flips there first; then here, as for what other replicas did.
"""

import asyncio
import difflib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import structlog

from app.engine.effect import Effect
from app.errors import InvalidRequest, OriginUnavailable, SoftserveError
from app.versions.disk import in_thread, telling_disk_failures
from app.versions.origin.shelf import Shelf, Staged
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
# The next record from the one before; what it holds ready stays so until the change is made.
Change = Callable[[Record, AsyncExitStack], Awaitable[Record]]


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
    `num_swaps` counts how often another version became live. `shelf` is what an origin has of them,
    where there is one.
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
        self.shelf: Shelf[V] | None = None
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
        record = self.store.record(name) or Record(name)
        self._check_is_there(record, param, kind, visible)
        return record

    def version(self, digest: str) -> V | None:
        """What is known of a version of a name, which an origin may have alone.

        None where the origin has forgotten it, and the name is about to.
        """
        if self.shelf is not None and not self.store.has(digest):
            return self.shelf.told(digest)
        return self.store.version(digest)

    def _check_is_there(
        self,
        record: Record,
        param: str,
        kind: str | None = None,
        visible: Visible = everything,
    ) -> None:
        if record.is_visible:
            return
        names = [
            other.name
            for other in self.store.records.values()
            if other.live is not None and kind in {None, other.kind} and visible(other.name)
        ]
        close = difflib.get_close_matches(record.name, names, n=3)
        advice = (
            f"did you mean {' or '.join(close)}?" if close else f"GET {self.words.path} lists them"
        )
        raise self.words.not_found(
            f"no {self.words.noun} is called {record.name[:64]!r}: {advice}", param=param
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
        entries: list[Entry] = []

        async def change(record: Record, held: AsyncExitStack) -> Record:
            if record.live == version.digest:
                return await self._claim(record, source, watched, version)
            self._check_can_take(record, kind, live=live)
            if not entries:
                await self.in_thread(self.store.add, folder, version)
                await held.enter_async_context(self._ready(version))
                effect = await self._effect(version)
                entries.append(Entry(version.digest, datetime.now(UTC), source, effect))
            put = partial(published, kind=kind, watched=watched) if live else put_beside
            return put(
                record, entries[0], retention=self._retention, is_in_use=self.store.is_pinned
            )

        return await self._change(name, change, Staged(folder, version))

    async def rollback(self, name: str, version: str | None = None) -> Record:
        """Make an older version live again.

        Without `version` it is the one below the live one in the history, so that rolling back
        twice goes back two; of a retired name, the one that was live last; of a split, the one that
        was live when it began. With `version` (a digest, or at least six of its first digits) it
        may also go forward.

        Raises that there is no such name or version, that there is nothing older, and whatever
        `ready` and `measure` raise.
        """

        async def change(record: Record, held: AsyncExitStack) -> Record:
            self._check_is_there(record, "name")
            if version is not None:
                digest = self._find_version(record, version)
            elif record.split is not None and record.live is not None:
                digest = record.live
            else:
                digest = older_version(record, partial(self.words.conflict, param="version"))
            return await self._make_live(record, rolled_back(record, digest), digest, held)

        return await self._change(name, change)

    async def promote(self, name: str, version: str | None = None) -> Record:
        """Make a version live that was tried beside the live one; what was live comes below it.

        Without `version` it is the one other version of a split, or else the shadow. Raises as
        `rollback` does, and a conflict where no version or several can be meant.
        """

        async def change(record: Record, held: AsyncExitStack) -> Record:
            self._check_is_there(record, "name")
            if version is not None:
                digest = self._find_version(record, version)
            else:
                digest = next_to_promote(record, partial(self.words.conflict, param="version"))
            return await self._make_live(record, promoted(record, digest), digest, held)

        return await self._change(name, change)

    async def split(self, name: str, versions: Mapping[str, int], sticky: Sticky) -> Record:
        """Have the bare name mean several versions by weight, each of them proven ready first.

        A version is named by its digest or at least six of its first digits. Raises that there is
        no such name or version, `InvalidRequest` for what is no split, and whatever `ready` and
        `measure` raise.
        """

        async def change(record: Record, held: AsyncExitStack) -> Record:
            self._check_is_there(record, "name")
            not_found = partial(self.words.not_found, param="versions")
            split = Split(find_weights(record, versions, not_found), sticky)
            # One after the other: there may be no room for all of them at once.
            for digest in split.weights:
                record = await self._proven(record, digest)
            return shared(record, split)

        record = await self._change(name, change)
        weights = None if record.split is None else record.split.weights
        log.info(f"{self.words.a_noun} is split", name=name, versions=weights, sticky=sticky)
        return record

    async def shadow(self, name: str, version: str, percent: float) -> Record:
        """Have a version get copies of requests. It begins anew where it was so before.

        Raises that there is no such name or version, a conflict where it is the live one, and
        whatever `ready` and `measure` raise.
        """

        async def change(record: Record, held: AsyncExitStack) -> Record:
            self._check_is_there(record, "name")
            digest = self._find_version(record, version)
            if record.live in {None, digest}:
                raise self.words.conflict(
                    f"a shadow is compared with the live version of {name}, and has to be another: "
                    "name another version, or make one live first",
                    param="version",
                )
            record = await self._proven(record, digest)
            return shadowed(record, Shadow(digest, percent, datetime.now(UTC)))

        record = await self._change(name, change)
        digest = None if record.shadow is None else record.shadow.digest
        log.info(f"{self.words.a_noun} has a shadow", name=name, version=digest, percent=percent)
        return record

    async def end_shadow(self, name: str) -> Record:
        """No version gets copies of requests. Raises that there is no such name."""

        async def change(record: Record, held: AsyncExitStack) -> Record:
            self._check_is_there(record, "name")
            return shadowed(record, None)

        return await self._change(name, change)

    async def remove(self, name: str) -> Record:
        """Forget a name with its versions; what it was. Raises that there is none."""
        before = Record(name)

        async def change(record: Record, held: AsyncExitStack) -> Record:
            nonlocal before
            self._check_is_there(record, "name")
            before = record
            return removed(record)

        await self._change(name, change)
        return before

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

        async def change(record: Record, held: AsyncExitStack) -> Record:
            return replace(record, watched=watched)

        await self._change(name, change)

    async def forget_watched(self, name: str) -> None:
        """It has gone from the watched folder."""

        async def change(record: Record, held: AsyncExitStack) -> Record:
            return folder_gone(record)

        await self._change(name, change)

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

    async def _change(self, name: str, change: Change, added: Staged[V] | None = None) -> Record:
        """Make a change in the turn of its name; `added` is a version that comes with it."""
        digests = () if added is None else (added.version.digest,)
        async with self.changing(name, *digests) as record, AsyncExitStack() as held:
            if self.shelf is None:
                return await self._save(await change(record, held))
            after = await self.shelf.change(name, lambda record: change(record, held), added)
            return await self._take_over(after)

    async def follow(self, name: str) -> bool:
        """Have a name be here as it is in the origin's catalog; whether it serves others then.

        Raises whatever `ready` raises, and that a version cannot be fetched.
        """
        assert self.shelf is not None
        if not self.shelf.has_catalog:
            return False
        async with self.changing(name) as before:
            record = await self._take_over(self.shelf.record(name))
        if record == before:
            return False
        log.info(
            f"{self.words.a_noun} is as in the origin",
            name=name,
            version=record.live,
        )
        return record.served != before.served

    async def bring(self, *references: str | None) -> None:
        """With an origin: have here what these stand for, if it has it.

        Raises that a version cannot be fetched, or is not taken here.
        """
        if self.shelf is None:
            return
        wanted = [each.partition("#")[0] for each in references if each is not None]
        while away := [each for each in wanted if not self._is_here(each)]:
            for reference in away:
                await self._bring(reference)
            # What is not found now, nobody has.
            wanted = [each for each in wanted if self._digest_of(each) is not None]

    async def _bring(self, reference: str) -> None:
        assert self.shelf is not None
        name = reference.partition("@")[0]
        if self._digest_of(reference) is None:
            # Without an answer, what is known here is all there is.
            with suppress(OriginUnavailable):
                await self.shelf.refresh()
            if self.shelf.record(name) != (self.store.record(name) or Record(name)):
                await self.follow(name)
        if (digest := self._digest_of(reference)) is not None:
            await self._here(digest)

    def _digest_of(self, reference: str) -> str | None:
        """What a reference stands for, as far as it is known here; None: nothing, or several."""
        name, _, prefix = reference.partition("@")
        record = self.store.record(name)
        if record is None or record.live is None:
            return None
        found = [digest for digest in record.digests if digest.startswith(prefix)]
        return (found[0] if len(found) == 1 else None) if prefix else record.live

    def _is_here(self, reference: str) -> bool:
        digest = self._digest_of(reference)
        return digest is not None and self.store.has(digest)

    async def _take_over(self, record: Record) -> Record:
        """Flip to a record of the origin's, once what it serves is ready."""
        before = self.store.record(record.name)
        served = record.served - (frozenset() if before is None else before.served)
        with ExitStack() as stack:
            for digest in record.served:
                stack.enter_context(self.store.pinned(digest))
            for digest in sorted(served):
                async with self._ready(await self._here(digest)):
                    pass
            return await self._save(record)

    async def _here(self, digest: str) -> V:
        """A version, in the store."""
        if self.shelf is not None and not self.store.has(digest):
            await self.shelf.fetch(digest)
        return self.store.version(digest)

    async def _claim(self, record: Record, source: str, watched: Watched | None, live: V) -> Record:
        """The record once its live version is published again, which is loaded to be measured."""
        claim = claimed(record, source, watched)
        if claim.effect is not None or self._measure is None:
            return claim
        return await self._proven(claim, live.digest)

    async def _make_live(
        self, before: Record, after: Record, digest: str, held: AsyncExitStack
    ) -> Record:
        if after == before:
            return before
        version = await self._here(digest)
        await held.enter_async_context(self._ready(version))
        return await self._with_effect(after, version)

    async def _proven(self, record: Record, digest: str) -> Record:
        """The record once a version of its history was ready to be used."""
        version = await self._here(digest)
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
