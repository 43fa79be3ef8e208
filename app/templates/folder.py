"""Makes the templates of a watched folder live: `NAME.yaml`, and the JSONL file that it names.

A look reads what has another size or time than before; the files are a few kilobytes. A content
that stays the same from one look to the next is complete, and is acted upon if it is another than
the last time. A file that is invalid is told of, and whatever was live stays live.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from app.errors import TemplateRejected
from app.templates.registry import FROM_WATCHED_FOLDER, TemplateRegistry
from app.templates.source import read_template
from app.versions.history import Watched
from softserve.schema.fields import NAME
from softserve.schema.templates import Template

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
RETRY_SECONDS = 30.0
SUFFIX, EXAMPLES_SUFFIX = ".yaml", ".jsonl"


@dataclass(frozen=True, slots=True)
class Look:
    """What a file holds. `signature` tells it from other content."""

    signature: str
    template: Template | None = None
    rejected: str | None = None


# By name: the status of the files, and what was seen in them.
Looked = dict[str, tuple[tuple[str, ...], Look]]


class TemplateFolder:
    """Keeps the registry in step with a folder, which need not exist.

    A missing folder says nothing about its templates: it may be a volume that is not mounted.
    """

    def __init__(self, registry: TemplateRegistry, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self._last_looks: dict[str, Look] | None = None
        self._looked_at: Looked = {}

    async def run(self, on_live: Callable[[str], Awaitable[None]]) -> None:
        """Watch until cancelled. `on_live` is awaited with each name that has a new version."""
        while True:
            try:
                for name in await self.look():
                    await on_live(name)
                await asyncio.sleep(LOOK_SECONDS)
            except Exception:
                log.exception("the templates cannot be read", folder=str(self._folder))
                await asyncio.sleep(RETRY_SECONDS)

    async def catch_up(self) -> None:
        """Act upon what lies there now: nobody is writing it as the server starts."""
        try:
            await self.look()
            await self.look()
        except Exception:
            log.exception("the templates cannot be read", folder=str(self._folder))

    async def look(self) -> list[str]:
        """Act upon what has changed, and has stayed so since the last look.

        Returns the names that have a new live version.
        """
        looks = await asyncio.to_thread(look_at, self._folder, self._looked_at)
        last, self._last_looks = self._last_looks, looks
        if looks is None or last is None:
            return []
        published = []
        watched = self._registry.watched()
        for name in looks.keys() | watched.keys():
            look = looks.get(name)
            if last.get(name) != look:
                continue
            if look is None:
                await self._registry.forget_watched(name)
                log.info("the file of a template is gone", name=name)
                continue
            known = watched.get(name)
            is_new = known is None or known.signature != look.signature
            if is_new and await self._act(name, look, known):
                published.append(name)
        return published

    async def _act(self, name: str, look: Look, known: Watched | None) -> bool:
        """Whether it is live now, as another version than before."""
        if look.template is None:
            return await self._reject(name, look, look.rejected)
        marked = Watched(look.signature, look.template.digest)
        if known is not None and known.digest == marked.digest:
            # Written in another way: what an operator did since stays.
            await self._registry.mark_watched(name, marked)
            return False
        try:
            await self._registry.publish(name, look.template, FROM_WATCHED_FOLDER, watched=marked)
        except TemplateRejected as error:
            return await self._reject(name, look, error.message)
        log.info("a watched template is live", name=name, version=marked.digest)
        return True

    async def _reject(self, name: str, look: Look, reason: str | None) -> bool:
        await self._registry.mark_watched(name, Watched(look.signature, rejected=reason))
        log.warning("a watched template is rejected", name=name, why=reason)
        return False


def look_at(folder: Path, looked_at: Looked) -> dict[str, Look] | None:
    """What each template's file holds, by name; None where there is no folder.

    A file is read where its size or its times, or those of the examples, are not those in
    `looked_at`, which is brought up to date.
    """
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A template may name any of them.
    examples = [_status(file) for file in entries if file.suffix == EXAMPLES_SUFFIX]
    files = {
        file.stem: file
        for file in entries
        if file.suffix == SUFFIX and NAME.fullmatch(file.stem) is not None
    }
    for name, file in files.items():
        status = (_status(file), *sorted(examples))
        if name not in looked_at or looked_at[name][0] != status:
            looked_at[name] = status, _look_at(file)
    return {name: looked_at[name][1] for name in files}


def _status(file: Path) -> str:
    try:
        status = file.lstat()
    except FileNotFoundError:
        return ""
    return f"{file.name} {status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_mode}"


def _look_at(file: Path) -> Look:
    try:
        content, read = read_template(file)
    except OSError as error:
        reason = f"it cannot be read ({error.strerror}): check its permissions"
        return Look(f"unreadable: {error.strerror}", rejected=reason)
    signature = hashlib.sha256(content).hexdigest()
    if isinstance(read, TemplateRejected):
        return Look(f"{signature} {read.message}", rejected=read.message)
    return Look(signature, read)
