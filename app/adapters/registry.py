"""Which adapters are live, and what each request runs with.

A name points to one version. Publishing puts a version into the store, loads it into the engine,
and only then flips the pointer, on disk and then in memory. A request leases the versions that it
resolves to when it arrives, and keeps them until it ends, whatever happens to the name meanwhile.
"""

import asyncio
import difflib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from app.adapters.archive import UploadedFile, stage_files, stage_folder
from app.adapters.residency import Residency
from app.adapters.sources import LocalFolder, fetch_hub, resolve_source
from app.adapters.store import Record, Store, store_folder
from app.adapters.validation import validate
from app.adapters.version import AdapterVersion
from app.engine.protocol import AdapterFiles, Engine
from app.errors import AdapterConflict, AdapterNotFound, InvalidRequest
from app.settings import Settings
from app.versions.disk import in_thread, telling_disk_failures
from app.versions.history import Entry, Watched, find_version, last_live_first, older
from softserve.schema.adapters import AdapterKind
from softserve.schema.fields import name_refusal

log = structlog.get_logger(__name__)

T = TypeVar("T")

# The `source` of what the watched folder holds.
FROM_WATCHED_FOLDER = "adapter_dir"
FROM_UPLOAD = "upload"

FIELDS: dict[AdapterKind, str] = {"lora": "adapter", "soft_prompt": "soft_prompt"}
KINDS: dict[AdapterKind, str] = {"lora": "a LoRA adapter", "soft_prompt": "a soft prompt"}


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """A name, without the version that a request may have pinned, and the version it stands for."""

    name: str
    version: AdapterVersion


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a request runs with; both None is the base model alone."""

    lora: ResolvedAdapter | None = None
    soft_prompt: ResolvedAdapter | None = None

    @property
    def lora_digest(self) -> str | None:
        return None if self.lora is None else self.lora.version.digest

    @property
    def soft_prompt_digest(self) -> str | None:
        return None if self.soft_prompt is None else self.soft_prompt.version.digest

    @property
    def num_virtual_tokens(self) -> int:
        return 0 if self.soft_prompt is None else self.soft_prompt.version.num_virtual_tokens or 0


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of an adapter. `requests` were served by it since the server started."""

    version: AdapterVersion
    created_at: datetime
    source: str
    loaded: bool
    requests: int


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """What is known of a name.

    `live` is the digest that answers, None for a retired name. `versions` come newest first.
    `rejected` says why the present content of its watched folder, or of the store, is not served;
    a name that was never anything but rejected has no versions and no `kind`.
    """

    name: str
    kind: AdapterKind | None
    live: str | None
    versions: tuple[VersionStatus, ...]
    rejected: str | None
    requests: int


def check_name(name: str) -> None:
    """Raises `InvalidRequest` for what cannot be the name of an adapter."""
    if refusal := name_refusal("an adapter", name):
        raise InvalidRequest(refusal, param="name")


class _Use:
    """What requests do with a name. A name that is removed and added again begins anew."""

    def __init__(self) -> None:
        self.num_requests: Counter[str] = Counter()
        self.num_leases = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @contextmanager
    def lease(self) -> Iterator[None]:
        self.num_leases += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.num_leases -= 1
            if not self.num_leases:
                self.idle.set()


class Registry:
    """The adapters of one engine.

    Changes of one name happen one after the other, changes of different names at the same time.
    A caller that is cancelled leaves either the old or the new state.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._store = Store(store_folder(settings))
        self._residency = Residency(engine, settings.max_loaded_adapters)
        self._uses: dict[str, _Use] = {}
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Read the store; what was live before is live again. Nothing is loaded yet.

        The engine need not have started: a store that is in use can be refused before it does.

        Raises:
            StartError: another server uses the store, or it cannot be written.
        """
        await in_thread(self._store.open)

    async def close(self) -> None:
        """Let the store go. Requests have ended, or are aborted with the engine."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._residency.close()
        self._store.close()

    @asynccontextmanager
    async def lease(
        self, adapter: str | None = None, soft_prompt: str | None = None
    ) -> AsyncIterator[Adapters]:
        """Resolve the names of a request, and hold what they stand for in the engine.

        A name is `name` or `name@version`, a digest or at least six of its first digits.

        Raises:
            AdapterNotFound: no such name or version; `param` is the field.
            AdapterRejected: the engine cannot load it.
            InvalidRequest: a soft prompt named in `adapter`, or a LoRA in `soft_prompt`.
        """
        adapters = Adapters(
            lora=None if adapter is None else self._resolve(adapter, "lora"),
            soft_prompt=None if soft_prompt is None else self._resolve(soft_prompt, "soft_prompt"),
        )
        resolved = [each for each in (adapters.lora, adapters.soft_prompt) if each is not None]
        uses = [self._uses.setdefault(each.name, _Use()) for each in resolved]
        async with AsyncExitStack() as stack:
            # Nothing is awaited before all files are pinned: no change comes in between.
            for each, use in zip(resolved, uses, strict=True):
                stack.enter_context(use.lease())
                stack.enter_context(self._store.pinned(each.version.digest))
            for each in resolved:
                await stack.enter_async_context(self._residency.hold(self._files(each.version)))
            for each, use in zip(resolved, uses, strict=True):
                use.num_requests[each.version.digest] += 1
            yield adapters

    @property
    def num_live(self) -> int:
        return sum(record.live is not None for record in self._store.records.values())

    @property
    def num_loaded(self) -> int:
        return self._residency.num_loaded

    def list(self) -> tuple[AdapterStatus, ...]:
        """Every adapter, by name."""
        records = sorted(self._store.records.values(), key=lambda record: record.name)
        return tuple(self._status(record) for record in records if _is_visible(record))

    def get(self, name: str) -> AdapterStatus:
        """One adapter. Raises `AdapterNotFound`, `InvalidRequest`."""
        check_name(name)
        return self._status(self._visible(name, "name"))

    async def add_upload(
        self, name: str, files: Iterable[UploadedFile], *, force: bool = False
    ) -> AdapterStatus:
        """Check uploaded files and make them the live version of `name`.

        Raises:
            InvalidRequest: no such name can be.
            AdapterRejected: the files are not an adapter that this server can run.
            AdapterConflict: the name is live as another kind.
        """
        check_name(name)
        async with self.staged(partial(stage_files, files), force=force) as (folder, version):
            return await self.publish(name, folder, version, FROM_UPLOAD)

    async def add_folder(
        self, name: str, folder: Path, source: str, *, force: bool = False
    ) -> AdapterStatus:
        """Check a folder and make its files the live version. Raises as `add_upload` does."""
        check_name(name)
        async with self.staged(partial(stage_folder, folder), force=force) as (staged, version):
            return await self.publish(name, staged, version, source)

    async def add_source(
        self, name: str, source: str, revision: str | None = None, *, force: bool = False
    ) -> AdapterStatus:
        """As `add_folder`, from a folder below the permitted ones or from a hub repository."""
        check_name(name)
        roots = (self._settings.adapter_dir, *self._settings.adapter_root)
        found = await in_thread(resolve_source, source, revision, roots)
        if isinstance(found, LocalFolder):
            return await self.add_folder(name, found.folder, source, force=force)
        async with self._staging() as folder:
            fetched = await in_thread(fetch_hub, found, folder, self._settings.max_adapter_bytes)
            return await self.add_folder(name, folder, fetched, force=force)

    @asynccontextmanager
    async def staged(
        self, stage: Callable[[Path, int], object], *, force: bool = False
    ) -> AsyncIterator[tuple[Path, AdapterVersion]]:
        """Have `stage` fill a private folder with so many bytes at most, and check what it holds.

        Raises:
            AdapterRejected: the files are not an adapter that this server can run.
        """
        architecture = self._engine.architecture
        async with self._staging() as folder:
            await in_thread(stage, folder, self._settings.max_adapter_bytes)
            version = await in_thread(validate, folder, architecture, self._settings, force)
            yield folder, version

    async def publish(
        self,
        name: str,
        folder: Path,
        version: AdapterVersion,
        source: str,
        *,
        watched: Watched | None = None,
    ) -> AdapterStatus:
        """Make a staged, valid version the live one. `watched` is given by who watches folders.

        A version that is live already stays as it is. What was live comes right below the new
        version, and what had been rolled back from sinks to the bottom, where it is trimmed first.

        Raises:
            AdapterRejected: the engine cannot load it.
            AdapterConflict: the name is live as another kind.
        """
        async with self._changing(name, version.digest) as record:
            if record.live == version.digest:
                await self._save(_claimed(record, source, watched))
                return self.get(name)
            if record.live is not None and record.kind != version.kind:
                assert record.kind is not None
                raise AdapterConflict(
                    f"{name} is {KINDS[record.kind]} and this is {KINDS[version.kind]}: choose "
                    "another name, or remove the old one first",
                    param="name",
                )
            await in_thread(self._store.add, folder, version)
            async with self._residency.hold(self._files(version)):
                entry = Entry(version.digest, datetime.now(UTC), source)
                history = self._trimmed((entry, *_below(record, version)))
                await self._save(
                    Record(name, version.kind, version.digest, history, watched or record.watched)
                )
            return self.get(name)

    async def rollback(self, name: str, version: str | None = None) -> AdapterStatus:
        """Make an older version live again.

        Without `version` it is the one below the live one in `versions`, so that rolling back
        twice goes back two; of a retired name, the one that was live last. With `version` (a
        digest, or at least six of its first digits) it may also go forward. The order of `versions`
        stays until something is published: then what was live comes right below the new version.

        Raises:
            AdapterNotFound: no such name or version.
            AdapterConflict: there is nothing older.
            AdapterRejected: the engine cannot load it.
        """
        async with self._changing(name):
            record = self._visible(name, "name")
            if version is None:
                digest = older(record, partial(AdapterConflict, param="version"))
            else:
                digest = find_version(record, version, partial(AdapterNotFound, param="version"))
            target = self._store.version(digest)
            if digest != record.live:
                async with self._residency.hold(self._files(target)):
                    await self._save(replace(record, live=digest, kind=target.kind, damaged=None))
            return self.get(name)

    async def remove(self, name: str) -> None:
        """Forget a name: at once for new requests, then wait for its leases, then delete its files.

        Who is cancelled while it waits has removed the name: the rest goes on without.

        Raises:
            AdapterNotFound: no such name.
        """
        async with self._changing(name):
            record = self._visible(name, "name")
            # What is in the watched folder was removed too, until it changes.
            watched = record.watched and replace(record.watched, rejected=None)
            await self._save(Record(name, watched=watched))
            use = self._uses.pop(name, _Use())
        clearing = asyncio.create_task(self._clear_away(use, record.digests))
        self._background.add(clearing)
        clearing.add_done_callback(self._background.discard)
        await asyncio.shield(clearing)

    def watched(self) -> dict[str, Watched]:
        """The watched folders that were acted upon, by name."""
        return {
            name: record.watched
            for name, record in self._store.records.items()
            if record.watched is not None
        }

    async def mark_watched(self, name: str, watched: Watched) -> None:
        """Remember what a watched folder holds, where nothing else follows from it."""
        async with self._changing(name) as record:
            await self._save(replace(record, watched=watched))

    async def forget_watched(self, name: str) -> None:
        """A watched folder is gone: its name is retired, if what is live came from the folder.

        A retired name keeps its versions: it is back with a rollback, or with the folder.
        """
        async with self._changing(name) as record:
            forgotten = replace(record, watched=None)
            if _source_of_live(record) == FROM_WATCHED_FOLDER:
                forgotten = replace(forgotten, live=None, history=last_live_first(record))
            await self._save(forgotten)

    @asynccontextmanager
    async def _changing(self, name: str, *added: str) -> AsyncIterator[Record]:
        """The turn to change a name. Afterwards, what nothing points to any more is cleared."""
        check_name(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            record = self._store.record(name) or Record(name)
            try:
                with ExitStack() as stack:
                    for digest in added:
                        stack.enter_context(self._store.pinned(digest))
                    yield record
            finally:
                await self._clear({*record.digests, *added})

    async def _clear(self, digests: set[str]) -> None:
        """Unload what is not live any more, and delete what is in no history any more."""
        records = self._store.records.values()
        for digest in digests - {record.live for record in records}:
            self._residency.retire(digest)
        if forgotten := digests.difference(*(record.digests for record in records)):
            await in_thread(self._store.collect, forgotten)

    @asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        with telling_disk_failures(), self._store.staging() as folder:
            try:
                yield folder
            finally:
                # Deleting a gigabyte takes a while.
                await in_thread(partial(shutil.rmtree, folder, ignore_errors=True))

    async def _clear_away(self, use: _Use, digests: Collection[str]) -> None:
        """What follows when a name is removed."""
        await use.idle.wait()
        for digest in digests:
            await self._residency.wait_until_unloaded(digest)
        await in_thread(self._store.collect, digests)

    async def _save(self, record: Record) -> None:
        """Flip: the store keeps the record on disk first, then in memory."""
        if record == self._store.record(record.name):
            return
        if record.history or record.watched is not None:
            await in_thread(self._store.save_record, record)
        else:
            await in_thread(self._store.delete_record, record.name)

    def _trimmed(self, history: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """The versions to keep; the first is live. One that a request runs with stays as well."""
        return tuple(
            entry
            for place, entry in enumerate(history)
            if place < self._settings.adapter_retention or self._store.is_pinned(entry.digest)
        )

    def _resolve(self, reference: str, kind: AdapterKind) -> ResolvedAdapter:
        field = FIELDS[kind]
        name, pinned, prefix = reference.partition("@")
        record = self._visible(name, field, kind)
        if record.live is None:
            why = _rejection(record) or "its folder is gone: put it back, or roll back to a version"
            raise AdapterNotFound(f"{name} is not served: {why}", param=field)
        not_found = partial(AdapterNotFound, param=field)
        digest = find_version(record, prefix, not_found) if pinned else record.live
        version = self._store.version(digest)
        if version.kind != kind:
            raise InvalidRequest(
                f"{name} is {KINDS[version.kind]}: name it in {FIELDS[version.kind]}", param=field
            )
        return ResolvedAdapter(name, version)

    def _visible(self, name: str, param: str, kind: AdapterKind | None = None) -> Record:
        record = self._store.record(name)
        if record is not None and _is_visible(record):
            return record
        names = [
            other.name
            for other in self._store.records.values()
            if other.live is not None and kind in {None, other.kind}
        ]
        close = difflib.get_close_matches(name, names, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "GET /adapters lists them"
        raise AdapterNotFound(f"no adapter is called {name[:64]!r}: {advice}", param=param)

    def _status(self, record: Record) -> AdapterStatus:
        use = self._uses.get(record.name) or _Use()
        return AdapterStatus(
            name=record.name,
            kind=record.kind,
            live=record.live,
            versions=tuple(
                VersionStatus(
                    version=self._store.version(entry.digest),
                    created_at=entry.created_at,
                    source=entry.source,
                    loaded=self._residency.is_loaded(entry.digest),
                    requests=use.num_requests[entry.digest],
                )
                for entry in record.history
            ),
            rejected=_rejection(record),
            requests=use.num_requests.total(),
        )

    def _files(self, version: AdapterVersion) -> AdapterFiles:
        return AdapterFiles(version.digest, version.kind, self._store.folder(version.digest))


def _rejection(record: Record) -> str | None:
    return record.damaged or (None if record.watched is None else record.watched.rejected)


def _is_visible(record: Record) -> bool:
    """Not so for a name that is only remembered because its folder was removed by an operator."""
    return bool(record.history or _rejection(record))


def _below(record: Record, version: AdapterVersion) -> tuple[Entry, ...]:
    """What stays below a new version. Another kind begins a history of its own."""
    if record.kind != version.kind:
        return ()
    return tuple(entry for entry in last_live_first(record) if entry.digest != version.digest)


def _claimed(record: Record, source: str, watched: Watched | None) -> Record:
    """The live version is added again: once an operator did, it outlasts the watched folder."""
    history = tuple(
        replace(entry, source=source)
        if entry.digest == record.live and source != FROM_WATCHED_FOLDER
        else entry
        for entry in record.history
    )
    return replace(record, history=history, watched=watched or record.watched)


def _source_of_live(record: Record) -> str | None:
    return next((entry.source for entry in record.history if entry.digest == record.live), None)
