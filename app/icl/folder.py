"""Makes the templates of a watched folder live: `NAME.yaml`, and the JSONL file that it names.

The files are a few kilobytes, so that a look reads them all. A content that stays the same from one
look to the next is complete, and is acted upon if it is another than the last time. A file that is
invalid is told of, and whatever was live stays live.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

import structlog

from app.adapters.history import NAME, Watched
from app.errors import TemplateRejected
from app.icl.registry import FROM_WATCHED_FOLDER, TemplateRegistry
from app.icl.source import read_template
from app.icl.template import Template

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
RETRY_SECONDS = 30.0
SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True)
class Look:
    """What a file holds. `signature` tells it from other content."""

    signature: str
    template: Template | None = None
    rejected: str | None = None


class TemplateFolder:
    """Keeps the registry in step with a folder, which need not exist.

    A missing folder says nothing about its templates: it may be a volume that is not mounted.
    """

    def __init__(self, registry: TemplateRegistry, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self._last_looks: dict[str, Look] | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self.look()
                await asyncio.sleep(LOOK_SECONDS)
            except Exception:
                log.exception("the templates cannot be read", folder=str(self._folder))
                await asyncio.sleep(RETRY_SECONDS)

    async def catch_up(self) -> None:
        """Act upon what lies there now: nobody is writing it as the server starts."""
        self._last_looks = await asyncio.to_thread(look_at, self._folder)
        await self.look()

    async def look(self) -> None:
        """Act upon what has changed, and has stayed so since the last look."""
        looks = await asyncio.to_thread(look_at, self._folder)
        last, self._last_looks = self._last_looks, looks
        if looks is None or last is None:
            return
        watched = self._registry.watched()
        for name in looks.keys() | watched.keys():
            look = looks.get(name)
            if last.get(name) != look:
                continue
            if look is None:
                await self._registry.forget_watched(name)
                log.info("the file of a template is gone", name=name)
            elif name not in watched or watched[name].signature != look.signature:
                await self._act(name, look, watched.get(name))

    async def _act(self, name: str, look: Look, known: Watched | None) -> None:
        if look.template is None:
            await self._reject(name, look, look.rejected)
            return
        marked = Watched(look.signature, look.template.digest)
        if known is not None and known.digest == marked.digest:
            # Written in another way: what an operator did since stays.
            await self._registry.mark_watched(name, marked)
            return
        try:
            await self._registry.publish(name, look.template, FROM_WATCHED_FOLDER, watched=marked)
        except TemplateRejected as error:
            await self._reject(name, look, error.message)
        else:
            log.info("a watched template is live", name=name, version=marked.digest)

    async def _reject(self, name: str, look: Look, reason: str | None) -> None:
        await self._registry.mark_watched(name, Watched(look.signature, rejected=reason))
        log.warning("a watched template is rejected", name=name, why=reason)


def look_at(folder: Path) -> dict[str, Look] | None:
    """What each template's file holds, by name; None where there is no folder."""
    try:
        files = [file for file in folder.iterdir() if file.suffix == SUFFIX]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {file.stem: _look_at(file) for file in files if NAME.fullmatch(file.stem)}


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
