"""Keeps names in step with a watched folder.

Events of the file system only wake the watcher: what it does follows from a look at the whole
folder, and from what the store remembers to have acted upon. So a missed event delays it, and a
restart does not undo what an operator did meanwhile; only a change of what lies there acts.

A look tells what lies there from its former content by a signature of sizes and times, without
reading it. It is acted upon when it is complete and has kept its signature for a moment.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
import watchfiles

from app.errors import SoftserveError
from app.versions.names import Names
from app.versions.records import Watched
from softserve.schema.fields import NAME

log = structlog.get_logger(__name__)

# What is being written changes more often than that.
SETTLED_SECONDS = 0.3
# Longer, so that replacing something (remove it, copy the new one) leaves no gap.
GONE_SECONDS = 1.0
# A copy that has come no further for so long will hardly end.
STALLED_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.1
# Without any event: for file systems that send none, and links to folders elsewhere.
RESCAN_SECONDS = 1.0
# Checking and loading keep a processor busy.
MAX_ACTIONS = 4
# After a failure that is not the fault of what lies there.
RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """What lies under a name.

    `signature` is None where there is nothing. `missing` is what a copy that still goes on has to
    bring, `refusal` why it is not read. What `is_empty` has no content of the name's: if it had,
    that is gone.
    """

    signature: str | None = None
    missing: str | None = None
    refusal: str | None = None
    is_empty: bool = False


GONE = Look()


@dataclass(frozen=True, slots=True)
class Found:
    """What was read under a name: a valid version, and what makes it live."""

    digest: str
    publish: Callable[[Watched], Awaitable[object]]


class Contents(Protocol):
    """What a watched folder can hold. `rejections` are the errors that it is itself to blame for.

    The first two methods block.
    """

    folder: Path

    @property
    def rejections(self) -> type[SoftserveError]: ...

    def look_around(self, acted_upon: Mapping[str, str]) -> dict[str, Look]:
        """The look of everything there, by name. Raises `FileNotFoundError` without a folder."""

    def look_at(self, name: str, acted_upon: str | None) -> Look:
        """The look of a name; one whose signature is `acted_upon` is not looked at closer."""

    def read(self, name: str) -> AbstractAsyncContextManager[Found]:
        """Read and check what lies under a name. Raises `rejections`."""


@dataclass(slots=True)
class _Waiting:
    """Something to act upon, and since when it has looked like this."""

    look: Look
    since: float

    def is_due(self, now: float) -> bool:
        if self.look == GONE:
            return now - self.since >= GONE_SECONDS
        return now - self.since >= (STALLED_SECONDS if self.look.missing else SETTLED_SECONDS)


class FolderWatcher:
    """Acts upon what changes in a folder, which need not exist.

    A missing folder says nothing about its names: it may be a volume that is not mounted.

    With `may_act`, servers share their names, and one of them at a time acts upon its folder. What
    this one has never seen in its own, another may have: it is not gone.
    """

    def __init__(
        self,
        names: Names[Any],
        contents: Contents,
        may_act: Callable[[], bool] | None = None,
    ) -> None:
        self._names = names
        self._contents = contents
        self._may_act = may_act
        self._noun = names.words.noun
        self._identity: tuple[int, int] | None = None
        self._replaced = asyncio.Event()
        self._waiting: dict[str, _Waiting] = {}
        self._acting: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(MAX_ACTIONS)
        self._changed = asyncio.Event()
        self._ignored: set[str] = set()
        self._seen: set[str] = set()
        self._caught_up = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        listening = asyncio.create_task(self._listen())
        try:
            while True:
                self._changed.clear()
                try:
                    await self._scan()
                except Exception:
                    log.exception(
                        "the watched folder cannot be read", folder=str(self._contents.folder)
                    )
                    self._caught_up.set()
                    await asyncio.sleep(RETRY_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._changed.wait()
        finally:
            tasks = [listening, *self._acting.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def catch_up(self, timeout_seconds: float) -> None:
        """Wait until everything that lay in the folder at the start has been acted upon.

        What is not complete is not waited for.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._caught_up.wait()
        except TimeoutError:
            log.warning(f"{self._noun}s are still being added", remaining=len(self._waiting))

    async def _listen(self) -> None:
        """Have every event wake the watcher. A folder that comes anew is listened to anew."""
        while True:
            # Asked first: watchfiles takes milliseconds of the event loop to find it missing.
            if not await asyncio.to_thread(self._contents.folder.exists):
                await asyncio.sleep(RESCAN_SECONDS)
                continue
            self._replaced = asyncio.Event()
            try:
                async for _ in watchfiles.awatch(
                    self._contents.folder,
                    watch_filter=None,
                    debounce=200,
                    stop_event=self._replaced,
                ):
                    self._changed.set()
            except FileNotFoundError:
                continue
            except Exception:
                log.exception("the watched folder sends no events: it is looked at every second")
                return

    def _pause(self) -> float:
        is_idle = self._waiting.keys() <= self._acting.keys()
        return RESCAN_SECONDS if is_idle else LOOK_AGAIN_SECONDS

    async def _scan(self) -> None:
        """Act upon everything that does not look as it did when it was last acted upon."""
        if self._may_act is not None and not self._may_act():
            self._waiting.clear()
            self._caught_up.set()
            return
        identity, looks = await asyncio.to_thread(self._look_around, self._acted_upon())
        if identity != self._identity:
            self._identity = identity
            self._replaced.set()
            watching = "watching" if identity else "nothing to watch yet"
            log.info(watching, folder=str(self._contents.folder))
        if identity is None:
            self._waiting.clear()
            self._caught_up.set()
            return
        # Asked for again: something may have been acted upon during the look.
        acted_upon = self._acted_upon()
        now = time.monotonic()
        self._seen.update(looks)
        for name in looks.keys() | acted_upon.keys() | self._waiting.keys():
            if NAME.fullmatch(name) is None:
                self._ignore(name)
            elif name not in self._acting and self._is_own(name):
                self._consider(name, looks.get(name, GONE), acted_upon.get(name), now)
        if all(waiting.look.missing or waiting.since > now for waiting in self._waiting.values()):
            self._caught_up.set()

    def _is_own(self, name: str) -> bool:
        """Whether it can be gone from this folder."""
        return self._may_act is None or name in self._seen

    def _look_around(
        self, acted_upon: Mapping[str, str]
    ) -> tuple[tuple[int, int] | None, dict[str, Look]]:
        """Which folder it is (None: there is none), and what lies there."""
        try:
            status = self._contents.folder.stat()
            looks = self._contents.look_around(acted_upon)
        except (FileNotFoundError, NotADirectoryError):
            return None, {}
        return (status.st_dev, status.st_ino), looks

    def _acted_upon(self) -> dict[str, str]:
        """The signatures of what was acted upon last, by name."""
        return {name: each.signature for name, each in self._names.watched().items()}

    def _ignore(self, name: str) -> None:
        if name not in self._ignored:
            self._ignored.add(name)
            log.warning(f"not the name of {self._names.words.a_noun}: rename it", found=name)

    def _consider(self, name: str, look: Look, acted_upon: str | None, now: float) -> None:
        if look.signature == acted_upon:
            self._waiting.pop(name, None)
            return
        waiting = self._waiting.get(name)
        if waiting is None or waiting.look != look:
            self._waiting[name] = _Waiting(look, now)
        elif waiting.is_due(now):
            self._acting[name] = asyncio.create_task(self._act(name, waiting))

    async def _act(self, name: str, waiting: _Waiting) -> None:
        try:
            async with self._turns:
                await self._apply(name, waiting.look)
        except Exception:
            # What lies there is to blame for has been recorded: this is the server's own fault.
            log.exception(f"a watched {self._noun} could not be handled: trying again", name=name)
            waiting.since = time.monotonic() + RETRY_SECONDS
        finally:
            del self._acting[name]
            self._changed.set()

    async def _apply(self, name: str, look: Look) -> None:
        if look.signature is None:
            if not await self._has_changed(name, None):
                await self._names.forget_watched(name)
                log.info(f"a watched {self._noun} is gone", name=name)
        elif refusal := look.refusal or look.missing:
            if look.is_empty and name in self._names.watched():
                await self._names.forget_watched(name)
            await self._reject(name, look.signature, refusal)
        else:
            try:
                await self._publish(name, look.signature)
            except Exception as error:
                # What changes while it is read may look damaged.
                if await self._has_changed(name, look.signature):
                    return
                if not isinstance(error, self._contents.rejections):
                    raise
                await self._reject(name, look.signature, error.message)

    async def _publish(self, name: str, signature: str) -> None:
        known = self._names.watched().get(name)
        async with self._contents.read(name) as found:
            if await self._has_changed(name, signature):
                return
            watched = Watched(signature, found.digest)
            if known is not None and known.digest == found.digest:
                # Touched or copied again: what an operator did since stays.
                await self._names.mark_watched(name, watched)
                return
            await found.publish(watched)
            log.info(f"a watched {self._noun} is live", name=name, version=found.digest)

    async def _reject(self, name: str, signature: str, reason: str) -> None:
        await self._names.mark_watched(name, Watched(signature, rejected=reason))
        log.warning(f"a watched {self._noun} is rejected", name=name, why=reason)

    async def _has_changed(self, name: str, signature: str | None) -> bool:
        look = await asyncio.to_thread(self._contents.look_at, name, signature)
        return look.signature != signature
