"""The catalog that all replicas share: read as it changes, changed by compare-and-swap.

A change reads the catalog, makes the next one and swaps it in. Whoever loses reads again and makes
the change on top of what came first, or is told that it does not fit any more.
"""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from app.errors import OriginUnavailable
from app.versions.origin.blobs import UNREACHABLE, Blobs, Changed, NotThere
from app.versions.origin.catalog import END, Catalog, Family, Stored, Unreadable, read, written
from app.versions.origin.document import document_of
from app.versions.records import Record

log = structlog.get_logger(__name__)

MAX_TRIES = 100
LONGEST_PAUSE_SECONDS = 0.1
# What became of a change whose answer got lost is asked so often.
MAX_QUESTIONS = 5
QUESTION_SECONDS = 0.5
CATALOG_IS_GONE = (
    "the origin of versions has lost its catalog: nothing has changed, and what is live stays "
    "live; restore it, or restart the replicas to begin it anew"
)
NOT_KNOWN = (
    "the origin of versions stopped answering during the change: whether it was made shows when it "
    "is back; look before you try again"
)
NOT_BEGUN = "the origin of versions has no catalog yet: try again in a moment"
TOO_MANY = "too many others change the catalog at once: nothing has changed; try again in a moment"

# The next record of a name from the one that the catalog has.
Change = Callable[[Record], Awaitable[Record]]
# Puts a version there that is new.
Put = Callable[[], Awaitable[Stored]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A catalog as it was read; `seen` is None where there was none."""

    catalog: Catalog
    seen: object | None


class Origin:
    """The catalog of one model below a URL, and the objects beside it.

    `changed` is set whenever the catalog is another one, or the origin is reached again.
    """

    def __init__(self, blobs: Blobs, folder: str) -> None:
        self.blobs = blobs
        self.folder = folder
        self.changed = asyncio.Event()
        self.is_reachable = False
        self._document = document_of(blobs, f"{folder}/catalog", END)
        self._snapshot = Snapshot(Catalog(), None)
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Snapshot] | None = None

    @property
    def catalog(self) -> Catalog:
        """As it was read last."""
        return self._snapshot.catalog

    @property
    def has_catalog(self) -> bool:
        """Whether one was ever read."""
        return self._snapshot.seen is not None

    def path(self, *parts: str) -> str:
        return "/".join((self.folder, *parts))

    async def refresh(self) -> Snapshot:
        """The catalog as it is now, in a read that begins after this call.

        Raises:
            OriginUnavailable: it cannot be read.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._read())
        return await asyncio.shield(self._next)

    async def change(
        self, family: Family, name: str, change: Change, added: Mapping[str, Put]
    ) -> Record:
        """Change the record of a name; what it is then.

        `change` may be made again on top of what another replica did; what it raises ends this.
        `added` puts versions there that come with it, once it is known to fit.

        Raises:
            OriginUnavailable: nothing has changed, unless the message says otherwise.
        """
        change_id = uuid.uuid4().hex
        stored: dict[str, Stored] = {}
        for _ in range(MAX_TRIES):
            base = await self.refresh()
            if base.seen is None:
                raise OriginUnavailable(NOT_BEGUN)
            if change_id in base.catalog.changes:
                return base.catalog.record(family, name)
            before = base.catalog.record(family, name)
            after = await change(before)
            for digest, put in added.items():
                if digest in after.digests and digest not in stored:
                    stored[digest] = await put()
            if after == before and not stored:
                return after
            catalog = base.catalog.with_records(family, {name: after}, stored, change_id)
            if await self._swap(base, catalog, change_id):
                return after
            await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS))  # noqa: S311
        raise OriginUnavailable(TOO_MANY)

    async def begin(self, catalog: Catalog) -> bool:
        """Make this the catalog of an origin without one, unless another replica comes first."""
        return await self._swap(Snapshot(Catalog(), None), catalog, "")

    async def trim(self) -> None:
        """Forget catalogs of long ago, where they are kept."""
        await self._document.trim()

    async def _read(self) -> Snapshot:
        async with self._turn:
            # Who comes from now on wants a later read.
            self._next = None
            try:
                self._learn(await self._newest())
            except OriginUnavailable as error:
                if self.is_reachable:
                    log.warning("the origin is out of reach", url=self.blobs.url, why=error.message)
                self.is_reachable = False
                raise
            return self._snapshot

    async def _newest(self) -> Snapshot:
        seen = self._snapshot.seen
        try:
            found = await self._document.read(seen)
        except NotThere as error:
            if seen is not None:
                raise OriginUnavailable(CATALOG_IS_GONE) from error
            return Snapshot(Catalog(), None)
        if found.data is None:
            return Snapshot(self._snapshot.catalog, found.seen)
        try:
            return Snapshot(read(found.data), found.seen)
        except Unreadable as error:
            raise OriginUnavailable(
                f"the catalog of the origin cannot be read ({error}): nothing has changed, and "
                "what is live stays live"
            ) from error

    def _learn(self, snapshot: Snapshot) -> None:
        if not self.is_reachable or snapshot.catalog is not self._snapshot.catalog:
            self.changed.set()
        if not self.is_reachable:
            log.info("the origin is reached", url=self.blobs.url)
        self.is_reachable = True
        self._snapshot = snapshot

    async def _swap(self, base: Snapshot, catalog: Catalog, change_id: str) -> bool:
        """Whether the catalog is this one now; not, if another came first."""
        data = written(catalog)
        async with self._turn:
            try:
                seen = await self._document.swap(data, base.seen)
            except Changed:
                return False
            except NotThere as error:
                raise OriginUnavailable(UNREACHABLE) from error
            except OriginUnavailable as error:
                unanswered = error
            else:
                # As every other replica reads it.
                self._learn(Snapshot(read(data), seen))
                return True
        return await self._find_out(change_id, unanswered)

    async def _find_out(self, change_id: str, unanswered: OriginUnavailable) -> bool:
        """Whether a change was made that was not answered."""
        for _ in range(MAX_QUESTIONS):
            await asyncio.sleep(QUESTION_SECONDS)
            try:
                snapshot = await self.refresh()
            except OriginUnavailable:
                continue
            # A write that is still under way may yet arrive: the next try would lose then.
            return change_id in snapshot.catalog.changes
        raise OriginUnavailable(NOT_KNOWN) from unanswered
