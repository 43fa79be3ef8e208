"""Which templates are live: names that point to versions, as those of adapters do.

A version is the digest of its content. A name's pointer flips, on disk and then in memory, when a
new version has been checked; whatever is invalid leaves it where it was.
"""

import asyncio
import difflib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import structlog

from app.adapters.store import store_folder
from app.engine.protocol import Engine
from app.errors import InvalidRequest, TemplateConflict, TemplateNotFound
from app.settings import Settings
from app.templates.compilation import CompiledTemplate
from app.templates.store import TemplateRecord, TemplateStore, TemplateVersion
from app.versions.disk import TEMPLATE_STORE, in_thread
from app.versions.history import (
    Watched,
    digests_of,
    find_version,
    last_live_first,
    older,
)
from softserve.schema.fields import name_refusal
from softserve.schema.templates import Template

log = structlog.get_logger(__name__)

FROM_WATCHED_FOLDER = "template_dir"
FROM_REQUEST = "upload"


@dataclass(frozen=True, slots=True)
class ResolvedTemplate:
    """What a request names; without a name it came with the request itself."""

    name: str | None
    version: str
    compiled: CompiledTemplate


def check_name(name: str) -> None:
    """Raises `InvalidRequest` for what cannot be the name of a template."""
    if refusal := name_refusal("a template", name):
        raise InvalidRequest(refusal, param="name")


class TemplateRegistry:
    """The templates of one server. Changes happen one after the other: each is short."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._retention = settings.adapter_retention
        self._store = TemplateStore(store_folder(settings) / "templates")
        self._records: dict[str, TemplateRecord] = {}
        self._compiled: dict[str, CompiledTemplate] = {}
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Read what was live before. The store is this server's own already."""
        self._records = await in_thread(self._store.read, store=TEMPLATE_STORE)

    @property
    def live(self) -> tuple[str, ...]:
        """The names that are served."""
        return tuple(record.name for record in self._records.values() if record.live)

    def list(self) -> tuple[TemplateRecord, ...]:
        """Every template, by name."""
        records = sorted(self._records.values(), key=lambda record: record.name)
        return tuple(record for record in records if _is_visible(record))

    def get(self, name: str) -> TemplateRecord:
        """One template. Raises `TemplateNotFound`, `InvalidRequest`."""
        check_name(name)
        return self._visible(name, "name")

    async def resolve(self, reference: str) -> ResolvedTemplate:
        """What `NAME` or `NAME@VERSION` stands for.

        Raises:
            TemplateNotFound: no such name or version.
            TemplateRejected: it was valid once, and is not for this model.
        """
        name, pinned, prefix = reference.partition("@")
        record = self._visible(name, "template")
        if record.live is None:
            raise TemplateNotFound(f"{name} is not served: {_why_not(record)}", param="template")
        not_found = partial(TemplateNotFound, param="template")
        digest = find_version(record, prefix, not_found) if pinned else record.live
        if digest not in self._compiled:
            compiled = await self.compiled(record.version(digest).template)
            self._compiled[digest] = compiled
        return ResolvedTemplate(name, digest, self._compiled[digest])

    async def compiled(self, template: Template) -> CompiledTemplate:
        """A template, checked. Raises `TemplateRejected`."""
        return await asyncio.to_thread(CompiledTemplate, template, self._engine.special_tokens)

    async def publish(
        self, name: str, template: Template, source: str, *, watched: Watched | None = None
    ) -> TemplateRecord:
        """Make this the live version of a name.

        Raises:
            InvalidRequest: no such name can be.
            TemplateRejected: it is not a template that can be served.
        """
        check_name(name)
        compiled = await self.compiled(template)
        digest = template.digest
        async with self._change(name) as record:
            self._compiled[digest] = compiled
            watched = watched or record.watched
            if record.live == digest:
                history = record.history
                if source != FROM_WATCHED_FOLDER:
                    # Once an operator has added it, it outlasts the watched folder.
                    history = tuple(
                        replace(each, source=source) if each.digest == digest else each
                        for each in history
                    )
                return await self._save(replace(record, history=history, watched=watched))
            version = TemplateVersion(digest, datetime.now(UTC), source, template)
            below = [each for each in last_live_first(record) if each.digest != digest]
            history = (version, *below)[: self._retention]
            return await self._save(TemplateRecord(name, digest, history, watched))

    async def rollback(self, name: str, version: str | None = None) -> TemplateRecord:
        """Make an older version live again; without `version`, the one below the live one.

        Raises:
            TemplateNotFound: no such name or version.
            TemplateConflict: there is nothing older.
        """
        check_name(name)
        async with self._change(name):
            record = self._visible(name, "name")
            if version is None:
                digest = older(record, partial(TemplateConflict, param="version"))
            else:
                digest = find_version(record, version, partial(TemplateNotFound, param="version"))
            return await self._save(replace(record, live=digest))

    async def remove(self, name: str) -> None:
        """Forget a name and its versions. Raises `TemplateNotFound`."""
        check_name(name)
        async with self._change(name):
            record = self._visible(name, "name")
            # What is in the watched folder was removed too, until it changes.
            watched = record.watched and replace(record.watched, rejected=None)
            await self._save(TemplateRecord(name, watched=watched))

    def watched(self) -> dict[str, Watched]:
        """The watched files that were acted upon, by name."""
        return {
            name: record.watched
            for name, record in self._records.items()
            if record.watched is not None
        }

    async def mark_watched(self, name: str, watched: Watched) -> None:
        """Remember what a watched file holds, where nothing else follows from it."""
        async with self._change(name) as record:
            await self._save(replace(record, watched=watched))

    async def forget_watched(self, name: str) -> None:
        """A watched file is gone: its name is retired, if what is live came from the folder."""
        async with self._change(name) as record:
            forgotten = replace(record, watched=None)
            if record.live and record.version(record.live).source == FROM_WATCHED_FOLDER:
                forgotten = replace(forgotten, live=None, history=last_live_first(record))
            await self._save(forgotten)

    @asynccontextmanager
    async def _change(self, name: str) -> AsyncIterator[TemplateRecord]:
        async with self._changing:
            yield self._records.get(name) or TemplateRecord(name)

    async def _save(self, record: TemplateRecord) -> TemplateRecord:
        """Flip: on disk first, then in memory."""
        if record != self._records.get(record.name):
            await in_thread(self._store.save, record, store=TEMPLATE_STORE)
            self._records[record.name] = record
            if not record.history and record.watched is None:
                del self._records[record.name]
        kept = {digest for each in self._records.values() for digest in digests_of(each)}
        self._compiled = {
            digest: compiled for digest, compiled in self._compiled.items() if digest in kept
        }
        return record

    def _visible(self, name: str, param: str) -> TemplateRecord:
        record = self._records.get(name)
        if record is not None and _is_visible(record):
            return record
        close = difflib.get_close_matches(name, self.live, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "GET /icl/templates lists them"
        raise TemplateNotFound(f"no template is called {name[:64]!r}: {advice}", param=param)


def _is_visible(record: TemplateRecord) -> bool:
    """Not so for a name that is only remembered because its file was removed by an operator."""
    return bool(record.history or (record.watched and record.watched.rejected))


def _why_not(record: TemplateRecord) -> str:
    if record.watched is not None and record.watched.rejected is not None:
        return record.watched.rejected
    return "its file is gone: put it back, or roll back to a version"
