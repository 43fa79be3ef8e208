"""Which templates are live: names that point to versions, as those of adapters do.

A version is the digest of a template's content, which is kept with what is known of it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.engine.protocol import Engine
from app.errors import TemplateConflict, TemplateNotFound
from app.settings import Settings
from app.templates.compilation import CompiledTemplate
from app.templates.stores_of_0_1 import take_over
from app.versions.location import store_folder
from app.versions.names import Names, Visible, Words, everything
from app.versions.records import Record, Watched
from app.versions.splits import Asker
from app.versions.store import Store
from softserve.schema.templates import Template

WORDS = Words(
    a_noun="a template",
    noun="template",
    watched="file",
    path="/icl/templates",
    not_found=TemplateNotFound,
    conflict=TemplateConflict,
)


@dataclass(frozen=True, slots=True)
class ResolvedTemplate:
    """What a request names; without a name it came with the request itself."""

    name: str | None
    version: str
    compiled: CompiledTemplate


class TemplateRegistry:
    """The templates of one server. `names` says what each name points to."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._folder = store_folder(settings) / "templates"
        self._compiled: dict[str, CompiledTemplate] = {}
        self.names = Names(
            Store(self._folder, "template", Template),
            WORDS,
            settings.adapter_retention,
            self._ready,
            lambda digest: self._compiled.pop(digest, None),
        )

    async def open(self) -> None:
        """Read what was live before.

        Raises:
            StartError: another server uses the store, or it cannot be written.
        """
        await self.names.in_thread(take_over, self._folder)
        await self.names.in_thread(self.names.store.open)

    def close(self) -> None:
        """Let the store go."""
        self.names.store.close()

    async def resolve(
        self, reference: str, visible: Visible = everything, asker: Asker | None = None
    ) -> ResolvedTemplate:
        """What `NAME` or `NAME@VERSION` stands for; the bare name is what its `asker` gets.

        Raises:
            TemplateNotFound: no such name or version.
            TemplateRejected: it was valid once, and is not for this model.
        """
        await self.names.bring(reference)
        name, digest = self.names.resolve(reference, "template", visible=visible, asker=asker)
        if digest not in self._compiled:
            self._compiled[digest] = await self.compiled(self.names.store.version(digest))
        return ResolvedTemplate(name, digest, self._compiled[digest])

    async def compiled(self, template: Template) -> CompiledTemplate:
        """A template, checked. Raises `TemplateRejected`."""
        return await asyncio.to_thread(CompiledTemplate, template, self._engine.special_tokens)

    async def publish(
        self,
        name: str,
        template: Template,
        source: str,
        *,
        watched: Watched | None = None,
        live: bool = True,
    ) -> Record:
        """Make this the live version of a name, or put it beside that.

        Raises:
            InvalidRequest: no such name can be.
            TemplateRejected: it is not a template that can be served.
            TemplateConflict: the name is split, or is not live.
        """
        self.names.check(name)
        async with self.names.staging() as folder:
            return await self.names.publish(
                name, folder, template, source, watched=watched, live=live
            )

    @asynccontextmanager
    async def _ready(self, template: Template) -> AsyncIterator[None]:
        """Refuse what cannot be compiled; keep what can."""
        self._compiled[template.digest] = await self.compiled(template)
        yield
