"""One family's part of an origin: its names in the catalog, and its versions, which are fetched.

A version travels as the files that were sent. Its digest says whether they are whole, and then they
are checked as if they had been sent to this replica.
"""

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol

import structlog

from app.errors import OriginUnavailable
from app.tasks import end
from app.versions.disk import in_thread, telling_disk_failures
from app.versions.origin.blobs import UNREACHABLE, NotThere, TooLarge
from app.versions.origin.catalog import Family, Shelved, Stored
from app.versions.origin.origin import Change, Origin
from app.versions.records import Record
from app.versions.store import Store, V
from softserve.schema.fields import SHOWN_DIGITS

log = structlog.get_logger(__name__)

NONCE_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Staged(Generic[V]):
    """A version, and the folder that it was staged in; the store may have taken that."""

    folder: Path
    version: V


class Goods(Protocol[V]):
    """What the versions of a family are made of."""

    @property
    def files(self) -> Mapping[str, int]:
        """The names of the files of each version, and how many bytes they have at most."""

    def sent(self, folder: Path, version: V) -> Mapping[str, Path | bytes]:
        """The files of a version as they were sent, from its folder."""

    def digest(self, sent: Path, facts: Mapping[str, Any]) -> str:
        """That of the files in a folder. It blocks."""

    def checked(
        self, sent: Path, facts: Mapping[str, Any]
    ) -> AbstractAsyncContextManager[tuple[Path, V]]:
        """A staged, valid version from files as they were sent. Raises why it is not taken."""

    def facts(self, version: V) -> Mapping[str, Any]:
        """What is told of a version where its files are not, as JSON has it."""

    def told(self, facts: Mapping[str, Any]) -> V | None:
        """The same, read; None where it does not say enough."""


class Shelf(Generic[V]):
    """The names and versions of one family; its versions are fetched into `store`."""

    def __init__(self, origin: Origin, family: Family, store: Store[V], goods: Goods[V]) -> None:
        self.family = family
        self._origin = origin
        self._store = store
        self._goods = goods
        self._fetching: dict[str, asyncio.Task[None]] = {}

    @property
    def shelved(self) -> Shelved:
        """What the catalog has, as it was read last."""
        return self._origin.catalog.shelved(self.family)

    @property
    def has_catalog(self) -> bool:
        """Whether the catalog was ever read: what it does not have, is only then not there."""
        return self._origin.has_catalog

    def record(self, name: str) -> Record:
        """That of a name, an empty one where the catalog has none."""
        return self._origin.catalog.record(self.family, name)

    def told(self, digest: str) -> V | None:
        """What is told of a version of the catalog, if it is there."""
        stored = self.shelved.versions.get(digest)
        return None if stored is None else self._goods.told(stored.facts)

    async def refresh(self) -> None:
        """Have `shelved` be as of now. Raises `OriginUnavailable`."""
        await self._origin.refresh()

    async def change(self, name: str, change: Change, added: Staged[V] | None) -> Record:
        """Change a name in the catalog, where `added` is put first, if it is given.

        Raises:
            OriginUnavailable: nothing has changed, unless the message says otherwise.
        """
        puts = {} if added is None else {added.version.digest: partial(self._put, added)}
        return await self._origin.change(self.family, name, change, puts)

    async def fetch(self, digest: str) -> None:
        """Have the store hold a version of the catalog.

        Raises:
            OriginUnavailable: it cannot be fetched, or is damaged.
            StoreUnavailable: it cannot be written here.
        """
        task = self._fetching.get(digest)
        if task is None:
            task = self._fetching[digest] = asyncio.create_task(self._fetch(digest))
            task.add_done_callback(lambda _: self._fetching.pop(digest))
        await asyncio.shield(task)

    async def put(self, digest: str) -> Stored:
        """Put a version of the store there. Raises `OriginUnavailable`."""
        return await self._put(Staged(self._store.folder(digest), self._store.version(digest)))

    async def has_sent(self, digest: str) -> bool:
        """Whether the store has a version as it was sent."""
        return bool(await self._in_thread(self._has_sent, digest))

    async def close(self) -> None:
        """Fetch nothing more."""
        await end(list(self._fetching.values()))

    async def _put(self, staged: Staged[V]) -> Stored:
        version = staged.version
        taken = self._store.folder(version.digest)
        folder = taken if await asyncio.to_thread(taken.is_dir) else staged.folder
        place = f"{version.digest}-{uuid.uuid4().hex[:NONCE_DIGITS]}"
        try:
            for name, content in self._goods.sent(folder, version).items():
                await self._origin.blobs.write(self._path(place, name), content)
        except NotThere as error:
            raise OriginUnavailable(UNREACHABLE) from error
        return Stored(place, self._goods.facts(version))

    async def _fetch(self, digest: str) -> None:
        try:
            stored = self.shelved.versions[digest]
            with (
                self._store.pinned(digest),
                telling_disk_failures(self._store.title),
                self._store.staging() as sent,
            ):
                for name, max_bytes in self._goods.files.items():
                    await self._download(self._path(stored.place, name), sent / name, max_bytes)
                await self._in_thread(self._check_digest, sent, stored, digest)
                async with self._goods.checked(sent, stored.facts) as (folder, version):
                    await self._in_thread(self._store.add, folder, version)
        except (KeyError, NotThere, TooLarge) as error:
            raise OriginUnavailable(
                f"version {digest[:SHOWN_DIGITS]} of {self._store.noun}s is damaged in the origin: "
                "add it again"
            ) from error
        log.info(f"{self._store.noun} fetched from the origin", version=digest)

    def _has_sent(self, digest: str) -> bool:
        version = self._store.version(digest)
        with self._store.staging() as folder:
            for name, content in self._goods.sent(self._store.folder(digest), version).items():
                if isinstance(content, bytes):
                    (folder / name).write_bytes(content)
                else:
                    (folder / name).symlink_to(content)
            return self._goods.digest(folder, self._goods.facts(version)) == digest

    def _check_digest(self, sent: Path, stored: Stored, digest: str) -> None:
        if self._goods.digest(sent, stored.facts) != digest:
            raise NotThere

    async def _download(self, path: str, file: Path, max_bytes: int) -> None:
        async with aclosing(self._origin.blobs.chunks(path, max_bytes)) as chunks:
            with file.open("xb") as target:
                async for chunk in chunks:
                    await asyncio.to_thread(target.write, chunk)

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await in_thread(self._store.title, work, *args)

    def _path(self, *parts: str) -> str:
        return self._origin.path(self.family, *parts)
