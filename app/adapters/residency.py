"""Which versions the engine has in memory: loaded when asked for, kept while they are held.

The engine has room for so many LoRAs, and for as many soft prompts. When one more is asked for,
the one that has been unused for longest is unloaded; if all are in use, the asker waits.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from app.engine.protocol import AdapterFiles, Engine
from app.telemetry.metrics import Metrics
from app.telemetry.usage import kind_of
from softserve.schema.adapters import AdapterKind

log = structlog.get_logger(__name__)


class _Resident:
    """A version that is loaded or on its way in, and how many hold it."""

    def __init__(self, files: AdapterFiles) -> None:
        self.files = files
        self.num_holders = 0
        self.loading: asyncio.Task[None] | None = None
        self.is_loaded = False
        self.is_retired = False


class _Pool:
    """The room for one kind. `num_used` counts what is loaded, on its way in or on its way out."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_used = 0
        self.num_leaving = 0
        # Who waits for room does so in turn.
        self.turn = asyncio.Lock()
        # The least recently used comes first.
        self.residents: dict[str, _Resident] = {}


class Residency:
    """Loads and unloads the versions of one engine.

    Every load and unload runs in a task of its own: a caller that is cancelled takes its hold back
    and harms no other that waits for the same version.
    """

    def __init__(self, engine: Engine, capacity: int, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._pools: dict[AdapterKind, _Pool] = {
            "lora": _Pool(capacity),
            "soft_prompt": _Pool(capacity),
        }
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, files: AdapterFiles) -> AsyncIterator[None]:
        """Have the engine keep a version in memory meanwhile.

        Raises:
            AdapterRejected: the engine cannot load it; the next call tries again.
        """
        resident = self._touch(files)
        resident.num_holders += 1
        resident.is_retired = False
        try:
            if not resident.is_loaded:
                if resident.loading is None:
                    resident.loading = self._start(self._load(resident))
                await asyncio.shield(resident.loading)
            yield
        finally:
            resident.num_holders -= 1
            self._let_go(resident)

    @property
    def num_loaded(self) -> int:
        return sum(
            resident.is_loaded
            for pool in self._pools.values()
            for resident in pool.residents.values()
        )

    def is_loaded(self, digest: str) -> bool:
        resident = self._find(digest)
        return resident is not None and resident.is_loaded

    @property
    def is_short_of_room(self) -> bool:
        """Whether somebody waits for room, or has something unloaded for it."""
        return any(pool.turn.locked() for pool in self._pools.values())

    def has_room(self, kind: AdapterKind, digest: str) -> bool:
        """Whether a version can be held at once: it is there, or nothing has to go for it."""
        pool = self._pools[kind]
        return digest in pool.residents or pool.num_used < pool.capacity

    def retire(self, digest: str) -> None:
        """Unload a version as soon as nobody holds it, unless somebody asks for it again."""
        if (resident := self._find(digest)) is not None:
            resident.is_retired = True
            self._let_go(resident)

    async def wait_until_unloaded(self, digest: str) -> None:
        """Wait for the end of an unload that has begun."""
        if (unloading := self._unloading.get(digest)) is not None:
            await asyncio.wait([unloading])

    async def close(self) -> None:
        """End every load and unload: the engine ends too."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _find(self, digest: str) -> _Resident | None:
        found = (pool.residents.get(digest) for pool in self._pools.values())
        return next((resident for resident in found if resident is not None), None)

    def _touch(self, files: AdapterFiles) -> _Resident:
        """The resident of a version, as the one used last."""
        residents = self._pools[files.kind].residents
        resident = residents.pop(files.digest, None) or _Resident(files)
        residents[files.digest] = resident
        return resident

    def _let_go(self, resident: _Resident) -> None:
        """What follows when nobody may be left who holds it."""
        if resident.num_holders:
            return
        if resident.is_loaded:
            self._touch(resident.files)
            if resident.is_retired:
                self._start_unload(resident)
        self._changed.set()

    async def _load(self, resident: _Resident) -> None:
        files = resident.files
        pool = self._pools[files.kind]
        try:
            if (unloading := self._unloading.get(files.digest)) is not None:
                await asyncio.wait([unloading])
            if await self._take_room(pool, resident):
                await self._fill(pool, resident)
        finally:
            resident.loading = None
            if not resident.is_loaded:
                del pool.residents[files.digest]
            self._let_go(resident)

    async def _fill(self, pool: _Pool, resident: _Resident) -> None:
        kind = kind_of(resident.files.kind)
        started = time.perf_counter()
        try:
            await self._engine.load_adapter(resident.files)
        except BaseException as error:
            pool.num_used -= 1
            if isinstance(error, Exception):
                self._metrics.adapter_load_failures.labels(kind).inc()
            raise
        self._metrics.adapter_load_seconds.labels(kind).observe(time.perf_counter() - started)
        resident.is_loaded = True

    async def _take_room(self, pool: _Pool, resident: _Resident) -> bool:
        """Whether there is room now; not, if everybody who asked has left meanwhile."""
        async with pool.turn:
            while resident.num_holders:
                if pool.num_used < pool.capacity:
                    pool.num_used += 1
                    return True
                self._evict(pool)
                await self._changed.wait()
        return False

    def _evict(self, pool: _Pool) -> None:
        """Start to unload what has been unused for longest, unless something leaves already."""
        free = (
            resident
            for resident in pool.residents.values()
            if resident.is_loaded and not resident.num_holders
        )
        if not pool.num_leaving and (unused := next(free, None)) is not None:
            self._metrics.adapter_evictions.labels(kind_of(unused.files.kind)).inc()
            self._start_unload(unused)
        self._changed.clear()

    def _start_unload(self, resident: _Resident) -> None:
        pool = self._pools[resident.files.kind]
        del pool.residents[resident.files.digest]
        resident.is_loaded = False
        pool.num_leaving += 1
        self._unloading[resident.files.digest] = self._start(self._unload(pool, resident.files))

    async def _unload(self, pool: _Pool, files: AdapterFiles) -> None:
        try:
            await self._engine.unload_adapter(files)
        except Exception:
            # It will not be used any more: nobody has to hear of it.
            log.exception("an adapter could not be unloaded", digest=files.digest)
        finally:
            pool.num_leaving -= 1
            pool.num_used -= 1
            del self._unloading[files.digest]
            self._changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
