"""Makes what lies in a watched folder live: a subfolder is an adapter, its name is the name.

Events of the file system only wake the watcher: what it does follows from a look at the whole
folder, and from what the store remembers to have acted upon. So a missed event delays it, and a
restart does not undo what an operator did meanwhile; only a change of a subfolder's files acts.

A look reads no weights: a subfolder is told from its former content by a signature of its files'
sizes and times, and is acted upon when it is complete and has kept its signature for a moment.
"""

import asyncio
import json
import os
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import watchfiles

from app.adapters.registry import FROM_WATCHED_FOLDER, Registry
from app.adapters.sources import is_below
from app.adapters.staging import stage_folder
from app.errors import AdapterError
from app.versions.history import Watched
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.fields import NAME

log = structlog.get_logger(__name__)

# A subfolder that is being written changes more often than that.
SETTLED_SECONDS = 0.3
# Longer, so that replacing a subfolder (remove it, copy the new one) leaves no gap.
GONE_SECONDS = 1.0
# A copy that has come no further for so long will hardly end.
STALLED_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.1
# Without any event: for file systems that send none, and links to folders elsewhere.
RESCAN_SECONDS = 1.0
# Checking and loading keep a processor busy.
MAX_ACTIONS = 4
# After a failure that is not the subfolder's fault.
RETRY_SECONDS = 30.0
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Look:
    """What a subfolder looks like.

    `signature` is None where there is nothing of an adapter. `missing` is what a copy that still
    goes on has to bring, `refusal` why the subfolder is not read.
    """

    signature: str | None = None
    missing: str | None = None
    refusal: str | None = None


GONE = Look()


@dataclass(slots=True)
class _Waiting:
    """A subfolder to act upon, and since when it has looked like this."""

    look: Look
    since: float

    def is_due(self, now: float) -> bool:
        if self.look == GONE:
            return now - self.since >= GONE_SECONDS
        return now - self.since >= (STALLED_SECONDS if self.look.missing else SETTLED_SECONDS)


class FolderWatcher:
    """Keeps the registry in step with a folder, which need not exist.

    A missing folder says nothing about its adapters: it may be a volume that is not mounted. Links
    are followed to folders below the watched one and below `roots`.
    """

    def __init__(self, registry: Registry, folder: Path, roots: Sequence[Path] = ()) -> None:
        self._registry = registry
        self._folder = folder
        self._roots = (folder, *roots)
        self._identity: tuple[int, int] | None = None
        self._replaced = asyncio.Event()
        self._waiting: dict[str, _Waiting] = {}
        self._acting: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(MAX_ACTIONS)
        self._changed = asyncio.Event()
        self._ignored: set[str] = set()
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
                    log.exception("the watched folder cannot be read", folder=str(self._folder))
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
        """Wait until every adapter that lay in the folder at the start has been acted upon.

        One that is not complete is not waited for.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._caught_up.wait()
        except TimeoutError:
            log.warning("adapters are still being added", remaining=len(self._waiting))

    async def _listen(self) -> None:
        """Have every event wake the watcher. A folder that comes anew is listened to anew."""
        while True:
            self._replaced = asyncio.Event()
            try:
                async for _ in watchfiles.awatch(
                    self._folder, watch_filter=None, debounce=200, stop_event=self._replaced
                ):
                    self._changed.set()
            except FileNotFoundError:
                await asyncio.sleep(RESCAN_SECONDS)
            except Exception:
                log.exception("the watched folder sends no events: it is looked at every second")
                return

    def _pause(self) -> float:
        is_idle = self._waiting.keys() <= self._acting.keys()
        return RESCAN_SECONDS if is_idle else LOOK_AGAIN_SECONDS

    async def _scan(self) -> None:
        """Act upon every subfolder that does not look as it did when it was last acted upon."""
        identity, looks = await asyncio.to_thread(
            look_around, self._folder, self._roots, self._acted_upon()
        )
        if identity != self._identity:
            self._identity = identity
            self._replaced.set()
            log.info("watching" if identity else "nothing to watch yet", folder=str(self._folder))
        if identity is None:
            self._waiting.clear()
            self._caught_up.set()
            return
        # Asked for again: something may have been acted upon during the look.
        acted_upon = self._acted_upon()
        now = time.monotonic()
        for name in looks.keys() | acted_upon.keys() | self._waiting.keys():
            if NAME.fullmatch(name) is None:
                self._ignore(name)
            elif name not in self._acting:
                self._consider(name, looks.get(name, GONE), acted_upon.get(name), now)
        if all(waiting.look.missing or waiting.since > now for waiting in self._waiting.values()):
            self._caught_up.set()

    def _acted_upon(self) -> dict[str, str]:
        """The signatures of what was acted upon last, by name."""
        return {name: each.signature for name, each in self._registry.watched().items()}

    def _ignore(self, name: str) -> None:
        if name not in self._ignored:
            self._ignored.add(name)
            log.warning("not the name of an adapter: rename its folder", folder=name)

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
            # What the subfolder is to blame for has been recorded: this is the server's own fault.
            log.exception("a watched adapter could not be handled: trying again", name=name)
            waiting.since = time.monotonic() + RETRY_SECONDS
        finally:
            del self._acting[name]
            self._changed.set()

    async def _apply(self, name: str, look: Look) -> None:
        if look.signature is None:
            if not await self._has_changed(name, None):
                await self._registry.forget_watched(name)
                log.info("the folder of an adapter is gone", name=name)
        elif refusal := look.refusal or look.missing:
            await self._reject(name, look.signature, refusal)
        else:
            try:
                await self._publish(name, look.signature)
            except Exception as error:
                # What changes while it is read may look damaged.
                if await self._has_changed(name, look.signature):
                    return
                if not isinstance(error, AdapterError):
                    raise
                await self._reject(name, look.signature, error.message)

    async def _publish(self, name: str, signature: str) -> None:
        known = self._registry.watched().get(name)
        folder = (self._folder / name).resolve()
        async with self._registry.staged(partial(stage_folder, folder)) as (staged, version):
            if await self._has_changed(name, signature):
                return
            watched = Watched(signature, version.digest)
            if known is not None and known.digest == version.digest:
                # Touched or copied again: what an operator did since stays.
                await self._registry.mark_watched(name, watched)
                return
            await self._registry.publish(
                name, staged, version, FROM_WATCHED_FOLDER, watched=watched
            )
            log.info("a watched adapter is live", name=name, version=version.digest)

    async def _reject(self, name: str, signature: str, reason: str) -> None:
        await self._registry.mark_watched(name, Watched(signature, rejected=reason))
        log.warning("a watched adapter is rejected", name=name, why=reason)

    async def _has_changed(self, name: str, signature: str | None) -> bool:
        look = await asyncio.to_thread(look_at, self._folder / name, self._roots, signature)
        return look.signature != signature


def look_around(
    folder: Path, roots: Sequence[Path], acted_upon: Mapping[str, str]
) -> tuple[tuple[int, int] | None, dict[str, Look]]:
    """Which folder it is (None: there is none), and the look of each subfolder with an adapter."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if not each.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return None, {}
    looks = {name: look_at(folder / name, roots, acted_upon.get(name)) for name in names}
    return (status.st_dev, status.st_ino), {
        name: look for name, look in looks.items() if look != GONE
    }


def look_at(folder: Path, roots: Sequence[Path], acted_upon: str | None) -> Look:
    """The look of a subfolder; one whose signature is `acted_upon` is not looked at closer."""
    try:
        signature = _signature(folder)
        if signature is None or signature == acted_upon:
            return Look(signature)
        if folder.is_symlink() and not is_below(folder, roots):
            return Look(
                signature,
                refusal="its folder is a link that leads outside: link to a folder below "
                "--adapter-dir or an --adapter-root",
            )
        return Look(signature, missing=_missing(folder))
    except OSError as error:
        reason = f"its files cannot be read ({error.strerror}): check their permissions"
        return Look(f"unreadable: {error.strerror}", refusal=reason)


def _signature(folder: Path) -> str | None:
    """Tells the content of a subfolder without reading it; None if it has no adapter's files."""
    parts = [_file_signature(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    if not any(parts):
        return None
    # A link that leads elsewhere now has changed, whatever it leads to.
    target = str(folder.readlink()) if folder.is_symlink() else ""
    return " ".join([*parts, target])


def _file_signature(file: Path) -> str:
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _missing(folder: Path) -> str | None:
    """What a copy still has to bring, None if it is complete as far as the sizes tell."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            return f"its folder has no {name}: copy it there"
    if _is_truncated(folder / WEIGHTS_FILE):
        return f"its {WEIGHTS_FILE} is shorter than its header says: copy it again"
    return None


def _is_truncated(file: Path) -> bool:
    """Whether a safetensors file ends early. A header that makes no sense is for validation."""
    size = file.stat().st_size
    with file.open("rb") as content:
        if size < 8:
            return True
        (header_size,) = struct.unpack("<Q", content.read(8))
        if header_size > MAX_HEADER_BYTES:
            return False
        if size < 8 + header_size:
            return True
        try:
            header = json.loads(content.read(header_size))
            ends = [
                each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"
            ]
            return bool(size < 8 + header_size + max(ends, default=0))
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
