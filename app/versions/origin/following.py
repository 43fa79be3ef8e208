"""What every replica does all the time: follow the origin, say how far it is, and one tidies up.

The follower compares what is here with the catalog, whatever has happened meanwhile: so a missed
poll, an outage or a restart only delays it. A name that cannot be followed stays as it was here,
and is tried again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from app.errors import OriginUnavailable, SoftserveError
from app.tasks import end
from app.versions.names import Names
from app.versions.origin.catalog import Catalog, Stored
from app.versions.origin.garbage import collect
from app.versions.origin.origin import Origin
from app.versions.origin.replicas import BEAT_SECONDS, Replica, Replicas, serves
from app.versions.origin.shelf import Shelf
from app.versions.records import Record, restored

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
# Fetching, checking and loading keep the network and a processor busy.
MAX_ACTIONS = 4
# After a failure that is not the origin's silence.
RETRY_SECONDS = 5.0
TIDY_SECONDS = 600.0
WAIT_SECONDS = 60.0
LEAVE_SECONDS = 2.0
MADE = (
    "the change is made, and this replica serves it; which others do cannot be said, since the "
    "origin has stopped answering: they follow when it is back"
)
UNEXPECTED = "the reason is in the log of this replica"


@dataclass(frozen=True, slots=True)
class Followed:
    """The names of a family; `settle` is what follows when requests may run on other versions."""

    names: Names[Any]
    settle: Callable[[str], Awaitable[None]]

    def label(self, name: str) -> str:
        return f"{self.names.words.noun} {name}"

    def wanted(self, name: str) -> object:
        """What the catalog has of a name, and where."""
        shelf = self.names.shelf
        assert shelf is not None
        record = shelf.record(name)
        return record, [shelf.shelved.versions[digest].place for digest in sorted(record.served)]

    def differing(self) -> list[str]:
        """The names that are not here as they are in the catalog."""
        assert self.names.shelf is not None
        if not self.names.shelf.has_catalog:
            return []
        here, there = self.names.store.records, self.names.shelf.shelved.records
        return [
            name
            for name in sorted(here.keys() | there.keys())
            if here.get(name, Record(name)) != there.get(name, Record(name))
        ]


@dataclass(frozen=True, slots=True)
class Served:
    """Whether a replica serves what was asked for, and why not, if it has said so."""

    replica: Replica
    is_served: bool
    why: str


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why what was wanted of a name could not be had, and when it is tried again."""

    wanted: object
    why: str
    again_at: float


class Follower:
    """Keeps the names of this replica as the origin has them."""

    def __init__(self, origin: Origin, families: Sequence[Followed]) -> None:
        self.origin = origin
        self.replicas = Replicas(origin)
        self._families = families
        self._acting: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._turns = asyncio.Semaphore(MAX_ACTIONS)
        self._caught_up = asyncio.Event()
        self._tidying: set[asyncio.Task[None]] = set()
        self._beaten: tuple[int, dict[str, str]] | None = None
        self._beats_at = self._tidies_at = 0.0

    @property
    def generation(self) -> int:
        """That of the catalog that this replica follows."""
        return self.origin.catalog.generation

    @property
    def behind(self) -> dict[str, str]:
        """What it does not serve as of that generation, with the reason where there is one."""
        return {
            family.label(name): self._why(family, name)
            for family in self._families
            for name in family.differing()
        }

    def behind_of(self, names: Names[Any]) -> dict[str, str]:
        """The same, of one family, by name."""
        (family,) = (each for each in self._families if each.names is names)
        return {name: self._why(family, name) for name in family.differing()}

    @property
    def publishes(self) -> bool:
        """Whether the watched folders of this replica are those of all."""
        return self.origin.is_reachable and self.replicas.is_first

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                self.origin.changed.clear()
                try:
                    await self._look()
                except OriginUnavailable:
                    # The log has it from the origin. When that is back, nothing is put off.
                    self.replicas.lost()
                    self._failures.clear()
                    self._caught_up.set()
                except Exception:
                    log.exception("the origin cannot be followed: trying again")
                    self._caught_up.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self.origin.changed.wait()
        finally:
            await end([*self._acting.values(), *self._tidying])
            with suppress(TimeoutError, OriginUnavailable):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self.replicas.leave()

    async def catch_up(self, timeout_seconds: float) -> None:
        """Wait until everything of the origin is here, or it is known to be out of reach."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._caught_up.wait()
        except TimeoutError:
            log.warning("the origin is still being followed", behind=sorted(self.behind))
        if not self.origin.is_reachable:
            log.warning(
                "the origin is out of reach: this replica serves what its own store has",
                url=self.origin.blobs.url,
            )

    async def wait_for_all(self, names: Names[Any], name: str) -> list[Served]:
        """The replicas that are alive, once they serve a name as it is now, or say why not.

        Raises:
            OriginUnavailable: they cannot be asked; the change has been made.
        """
        label = next(each.label(name) for each in self._families if each.names is names)
        generation = self.generation
        try:
            # So that this one is among them, as it is now.
            await self._beat()
            replicas = await self.replicas.wait(generation, label, WAIT_SECONDS)
        except OriginUnavailable as error:
            raise OriginUnavailable(MADE) from error
        return [
            Served(each, serves(each.beat, generation, label), each.beat.behind.get(label, ""))
            for each in replicas
        ]

    async def _look(self) -> None:
        await self.origin.refresh()
        if not self.origin.has_catalog:
            await self._begin()
            await self.origin.refresh()
        for family in self._families:
            for name in family.differing():
                self._consider(family, name)
        now = time.monotonic()
        if now >= self._beats_at or self._beaten != (self.generation, self.behind):
            await self._beat()
        if not self._acting:
            self._caught_up.set()
        if now >= self._tidies_at and not self._tidying:
            self._tidies_at = now + TIDY_SECONDS
            task = asyncio.create_task(self._tidy())
            self._tidying.add(task)
            task.add_done_callback(self._tidying.discard)

    async def _tidy(self) -> None:
        """Delete here what another replica has forgotten while it was in use, and there garbage."""
        try:
            for family in self._families:
                await family.names.in_thread(family.names.store.collect_all)
            if self.publishes:
                await collect(self.origin, self.replicas.now)
        except OriginUnavailable:
            log.info("the garbage of the origin is collected another time")
        except Exception:
            log.exception("the garbage of the origin cannot be collected")

    async def _beat(self) -> None:
        said = self.generation, self.behind
        await self.replicas.beat(*said)
        self._beaten = said
        self._beats_at = time.monotonic() + BEAT_SECONDS

    def _consider(self, family: Followed, name: str) -> None:
        label = family.label(name)
        failure = self._failure(family, name)
        is_put_off = failure is not None and time.monotonic() < failure.again_at
        if label not in self._acting and not is_put_off:
            self._acting[label] = asyncio.create_task(self._follow(family, name))

    def _failure(self, family: Followed, name: str) -> _Failure | None:
        """Why what the catalog has of a name now could not be followed, if it could not."""
        failure = self._failures.get(family.label(name))
        return None if failure is None or failure.wanted != family.wanted(name) else failure

    def _why(self, family: Followed, name: str) -> str:
        failure = self._failure(family, name)
        return "" if failure is None else failure.why

    async def _follow(self, family: Followed, name: str) -> None:
        label, names, wanted = family.label(name), family.names, family.wanted(name)
        why = UNEXPECTED
        try:
            async with self._turns:
                if await names.follow(name):
                    await family.settle(name)
            self._failures.pop(label, None)
        except SoftserveError as error:
            why = error.message
            log.warning(f"{names.words.a_noun} cannot be followed", name=name, why=why)
        except Exception:
            log.exception(f"{names.words.a_noun} cannot be followed", name=name)
        else:
            return
        finally:
            del self._acting[label]
            # The generation that is served may be another one now.
            self.origin.changed.set()
        self._failures[label] = _Failure(wanted, why, time.monotonic() + RETRY_SECONDS)

    async def _begin(self) -> None:
        """Put what the store of this replica has into an origin without a catalog."""
        catalog = Catalog()
        for family in self._families:
            shelf = family.names.shelf
            assert shelf is not None
            records = family.names.store.records
            stored = await self._put_all(shelf, records.values())
            kept = {name: restored(each, stored.__contains__) for name, each in records.items()}
            if kept:
                catalog = catalog.with_records(shelf.family, kept, stored, "")
        if await self.origin.begin(catalog):
            log.info("the origin begins with what this replica has", url=self.origin.blobs.url)

    async def _put_all(self, shelf: Shelf[Any], records: Iterable[Record]) -> dict[str, Stored]:
        """Put there what the store has of these, as far as it was kept as it was sent."""
        stored = {}
        for digest in sorted({digest for record in records for digest in record.digests}):
            if await shelf.has_sent(digest):
                stored[digest] = await shelf.put(digest)
            else:
                log.warning(
                    f"{shelf.family} that were converted before there was an origin are not put "
                    "there: add them again",
                    version=digest,
                )
        return stored
