"""Which adapters are live, and what each request runs with.

A request leases the versions that its names stand for when it arrives, and keeps them until it
ends, whatever happens to the names meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path

import structlog

from app.adapters.effect import Probe, warning_of
from app.adapters.multitask import chosen_task
from app.adapters.residency import Residency
from app.adapters.version import AdapterVersion
from app.engine.effect import Effect
from app.engine.protocol import AdapterFiles, Engine
from app.errors import AdapterConflict, AdapterNotFound, InvalidRequest, ServerFull
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.telemetry.traces import phase
from app.versions.location import store_folder
from app.versions.names import Names, Visible, Words, everything
from app.versions.records import Record, Watched
from app.versions.splits import Asker
from app.versions.store import Store
from softserve.schema.adapters import ADAPTER_FILES, AdapterKind

log = structlog.get_logger(__name__)

FIELDS: dict[AdapterKind, str] = {"lora": "adapter", "soft_prompt": "soft_prompt"}
WORDS = Words(
    a_noun="an adapter",
    noun="adapter",
    watched="folder",
    path="/adapters",
    not_found=AdapterNotFound,
    conflict=AdapterConflict,
    kinds={"lora": "a LoRA adapter", "soft_prompt": "a soft prompt"},
)


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """A name, without what a request may have pinned, and the version and task it stands for."""

    name: str
    version: AdapterVersion
    task: int | None = None

    def reference(self, digest: str) -> str:
        """What names the same task of a version of it."""
        return f"{self.name}@{digest}" + ("" if self.task is None else f"#{self.task}")


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a request runs with; both None is the base model alone."""

    lora: ResolvedAdapter | None = None
    soft_prompt: ResolvedAdapter | None = None

    @property
    def all(self) -> list[ResolvedAdapter]:
        return [each for each in (self.lora, self.soft_prompt) if each is not None]

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.all]

    @property
    def lora_name(self) -> str | None:
        return None if self.lora is None else self.lora.name

    @property
    def soft_prompt_name(self) -> str | None:
        return None if self.soft_prompt is None else self.soft_prompt.name

    @property
    def lora_digest(self) -> str | None:
        return None if self.lora is None else self.lora.version.digest

    @property
    def soft_prompt_digest(self) -> str | None:
        return None if self.soft_prompt is None else self.soft_prompt.version.digest

    @property
    def num_virtual_tokens(self) -> int:
        return 0 if self.soft_prompt is None else self.soft_prompt.version.num_virtual_tokens or 0

    @property
    def task(self) -> int | None:
        return None if self.soft_prompt is None else self.soft_prompt.task


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


class AdapterRegistry:
    """The adapters of one engine. `names` says what each name points to."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        store = Store(store_folder(settings), "adapter", AdapterVersion, ADAPTER_FILES)
        self._residency = Residency(engine, settings.max_loaded_adapters, metrics)
        self._probe = Probe(engine)
        self.names = Names(
            store,
            WORDS,
            settings.adapter_retention,
            self._hold,
            self._residency.retire,
            self._measure,
        )
        self._uses: dict[str, _Use] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Read the store; what was live before is live again. Nothing is loaded yet.

        The engine need not have started: a store that is in use can be refused before it does.

        Raises:
            StartError: another server uses the store, or it cannot be written.
        """
        await self.names.in_thread(self.names.store.open)

    async def close(self) -> None:
        """Let the store go. Requests have ended, or are aborted with the engine."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self.names.shelf is not None:
            await self.names.shelf.close()
        await self._residency.close()
        self.names.store.close()

    @asynccontextmanager
    async def lease(
        self,
        adapter: str | None = None,
        soft_prompt: str | None = None,
        visible: Visible = everything,
        asker: Asker | None = None,
        *,
        spare: bool = False,
    ) -> AsyncIterator[Adapters]:
        """Resolve the names of a request, and hold what they stand for in the engine.

        A name is `name` or `name@version`, a digest or at least six of its first digits, and either
        with `#task` where a soft prompt has several. The bare name is what its `asker` gets. An
        error suggests names that are `visible`. What nobody waits for gets `spare` room alone, and
        is not counted as a request.

        Raises:
            AdapterNotFound: no such name, version or task, or it is not served.
            InvalidRequest: an adapter is named in the field of the other kind, or without its task.
            AdapterRejected: the engine cannot load it.
            OriginUnavailable: the version is not here yet, and cannot be fetched.
            ServerFull: there is no spare room.
        """
        await self.names.bring(adapter, soft_prompt)
        adapters = Adapters(
            lora=None if adapter is None else self._resolve(adapter, "lora", visible, asker),
            soft_prompt=None
            if soft_prompt is None
            else self._resolve(soft_prompt, "soft_prompt", visible, asker),
        )
        resolved = adapters.all
        if spare:
            self._check_room(resolved)
        uses = [self._uses.setdefault(each.name, _Use()) for each in resolved]
        async with AsyncExitStack() as stack:
            # Nothing is awaited before all files are pinned: no change comes in between.
            for each, use in zip(resolved, uses, strict=True):
                stack.enter_context(use.lease())
                stack.enter_context(self.names.store.pinned(each.version.digest))
            if resolved:
                with phase("adapter"):
                    for each in resolved:
                        await stack.enter_async_context(self._hold(each.version))
            for each, use in zip(resolved, uses, strict=True):
                use.num_requests[each.version.digest] += not spare
            yield adapters

    async def publish(
        self,
        name: str,
        folder: Path,
        version: AdapterVersion,
        source: str,
        *,
        watched: Watched | None = None,
        live: bool = True,
    ) -> Record:
        """Make a staged, valid version the live one, or put it beside that.

        Raises:
            AdapterRejected: the engine cannot load it, or cannot compute with it.
            AdapterConflict: the name is live as another kind, is split, or is not live.
        """
        record = await self.names.publish(
            name, folder, version, source, kind=version.kind, watched=watched, live=live
        )
        return _told(record) if live else record

    async def rollback(self, name: str, version: str | None = None) -> Record:
        """Make an older version live again. Raises as `Names.rollback` does."""
        return _told(await self.names.rollback(name, version))

    async def promote(self, name: str, version: str | None = None) -> Record:
        """Make a version live that was tried. Raises as `Names.promote` does."""
        return _told(await self.names.promote(name, version))

    async def remove(self, name: str) -> None:
        """Forget a name: at once for new requests, then wait for its leases, then delete its files.

        Who is cancelled while it waits has removed the name: the rest goes on without.

        Raises:
            AdapterNotFound: no such name.
        """
        record = await self.names.remove(name)
        use = self._uses.pop(name, _Use())
        clearing = asyncio.create_task(self._clear_away(use, record.digests))
        self._background.add(clearing)
        clearing.add_done_callback(self._background.discard)
        await asyncio.shield(clearing)

    @property
    def num_loaded(self) -> int:
        return self._residency.num_loaded

    def is_loaded(self, digest: str) -> bool:
        """Whether the engine holds a version in memory."""
        return self._residency.is_loaded(digest)

    def num_requests(self, name: str) -> Counter[str]:
        """How many requests each version of a name has served since the server started."""
        use = self._uses.get(name)
        return Counter() if use is None else use.num_requests

    @property
    def is_short_of_room(self) -> bool:
        """Whether a request waits for room in the engine's memory."""
        return self._residency.is_short_of_room

    def _check_room(self, resolved: Iterable[ResolvedAdapter]) -> None:
        for each in resolved:
            if not self._residency.has_room(each.version.kind, each.version.digest):
                raise ServerFull(f"there is no spare room for {each.name}: try again in a moment")

    def _resolve(
        self, reference: str, kind: AdapterKind, visible: Visible, asker: Asker | None
    ) -> ResolvedAdapter:
        field = FIELDS[kind]
        versioned, has_task, task = reference.partition("#")
        name, digest = self.names.resolve(versioned, field, kind, visible, asker)
        version = self.names.store.version(digest)
        if version.kind != kind:
            raise InvalidRequest(
                f"{name} is {WORDS.kinds[version.kind]}: name it in {FIELDS[version.kind]}",
                param=field,
            )
        named = task if has_task else None
        return ResolvedAdapter(
            name, version, chosen_task(versioned, named, version.num_tasks, field)
        )

    def _hold(self, version: AdapterVersion) -> AbstractAsyncContextManager[None]:
        """Have the engine hold a version meanwhile."""
        folder = self.names.store.folder(version.digest)
        return self._residency.hold(AdapterFiles(version.digest, version.kind, folder))

    async def _measure(self, version: AdapterVersion) -> Effect | None:
        return await self._probe.measure(version, self.names.store.folder(version.digest))

    async def _clear_away(self, use: _Use, digests: Collection[str]) -> None:
        """What follows when a name is removed."""
        await use.idle.wait()
        for digest in digests:
            await self._residency.wait_until_unloaded(digest)
        await self.names.in_thread(self.names.store.collect, digests)


def _told(record: Record) -> Record:
    """The log has what a version that became live changes."""
    told = log.bind(name=record.name, version=record.live)
    effect = record.effect
    if effect is None:
        told.info("an adapter is live", effect="not measured")
    elif warning := warning_of(effect):
        told.warning(
            "an adapter without an effect is live",
            kl_divergence=effect.kl_divergence,
            why=warning,
        )
    else:
        told.info("an adapter is live", kl_divergence=effect.kl_divergence)
    return record
