"""The server's life: start the engine, open the door, watch; close it when it dies or drains."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import structlog

from app.access.usage import UsageBook
from app.adapters.registry import AdapterRegistry
from app.engine.protocol import Engine
from app.errors import (
    EngineDied,
    EngineStarting,
    ServerDraining,
    SoftserveError,
    StartError,
)
from app.serving.admission import Admission
from app.serving.warming import Warming
from app.serving.watchdog import Watchdog
from app.templates.registry import TemplateRegistry
from app.versions.origin.following import Follower
from app.versions.watcher import FolderWatcher

log = structlog.get_logger(__name__)

WATCH_INTERVAL_SECONDS = 0.2
# Enough for open requests to be answered, once nothing runs for them any more.
ANSWER_TIMEOUT_SECONDS = 5.0
# What lies in the watched folder, or in the origin, is live when the server is ready; more than
# this many seconds' worth of it goes on being added while requests are answered.
CATCH_UP_TIMEOUT_SECONDS = 30.0
CLOSING_MESSAGE = "the server is shutting down: send this elsewhere"
FAILED_MESSAGE = "the server has failed and restarts: send this elsewhere, or try again"


class Lifecycle:
    """Runs an engine with its adapters, and says through `admission` whether it takes work.

    `on_ready` is called once, when everything has started. `on_failure` is called once, with a
    `StartError` if anything fails before, else if the engine has died or a watcher has failed, and
    the open requests have been answered.
    """

    def __init__(
        self,
        engine: Engine,
        adapters: AdapterRegistry,
        templates: TemplateRegistry,
        book: UsageBook,
        follower: Follower | None,
        adapter_watcher: FolderWatcher,
        template_watcher: FolderWatcher,
        warming: Warming,
        admission: Admission,
        watchdog: Watchdog,
        on_ready: Callable[[], None],
        on_failure: Callable[[SoftserveError], None],
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._templates = templates
        self._book = book
        self._follower = follower
        self._adapter_watcher = adapter_watcher
        self._template_watcher = template_watcher
        self._warming = warming
        self._admission = admission
        self._watchdog = watchdog
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._running: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the engine in the background and watch it from then on."""
        self._running = asyncio.create_task(self._run())

    async def drain(self, timeout_seconds: float) -> None:
        """Take nothing new, let running requests finish; abort those that outlast the timeout."""
        self._admission.close(ServerDraining(CLOSING_MESSAGE))
        if self._running is not None:
            self._running.cancel()
        if not await self._idle_within(timeout_seconds) and not self._engine.died:
            log.warning("drain timed out", aborting=self._admission.sequences_in_flight)
            self._admission.places.close(ServerDraining(CLOSING_MESSAGE))
            await self._abort()

    async def end(self) -> None:
        """Stop watching, and end the engine's processes."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._book.close()
        await self._adapters.close()
        self._templates.close()
        await self._engine.stop()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as watching:
                await self._start(watching)
                self._on_ready()
                self._admission.open(self._engine.info.max_running_sequences)
                watching.create_task(self._watchdog.run())
                log.info("ready", model=self._engine.info.model, device=self._engine.info.device)
                await self._until_death()
        # The first is the cause: what it cancels raises nothing.
        except ExceptionGroup as failures:
            await self._fail(failures.exceptions[0])

    async def _start(self, watching: asyncio.TaskGroup) -> None:
        # First: a store that is in use fails now, not after a minute.
        await self._adapters.open()
        await self._templates.open()
        await self._book.open()
        await self._engine.start()
        if self._follower is not None:
            watching.create_task(self._follower.run())
            await self._follower.catch_up(CATCH_UP_TIMEOUT_SECONDS)
        watching.create_task(self._adapter_watcher.run())
        await self._adapter_watcher.catch_up(CATCH_UP_TIMEOUT_SECONDS)
        # After the adapters, which a template may name.
        await self._warming.warm_all()
        watching.create_task(self._template_watcher.run())
        await self._template_watcher.catch_up(CATCH_UP_TIMEOUT_SECONDS)

    async def _until_death(self) -> NoReturn:
        # vLLM has no event to wait for.
        while not self._engine.died:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
        raise EngineDied("the engine process has died: the server restarts, try again")

    async def _fail(self, error: Exception) -> None:
        """Have the server end with a sentence, after what is open has been answered."""
        if not isinstance(error, StartError | EngineDied):
            log.error("unexpected failure", exc_info=error)
        if isinstance(self._admission.refusal, EngineStarting):
            self._on_failure(_start_error(error))
            return
        refusal = error if isinstance(error, EngineDied) else ServerDraining(FAILED_MESSAGE)
        self._admission.close(refusal)
        await self._idle_within(ANSWER_TIMEOUT_SECONDS)
        self._on_failure(refusal)

    async def _abort(self) -> None:
        """End what runs, and let it be answered, unless the engine hangs or dies meanwhile."""
        with suppress(TimeoutError, EngineDied):
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                await self._engine.abort_all()
                await self._admission.wait_until_idle()

    async def _idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._admission.wait_until_idle()
        except TimeoutError:
            return False
        return True


def _start_error(error: Exception) -> StartError:
    if isinstance(error, StartError):
        return error
    if isinstance(error, SoftserveError):
        return StartError(error.message)
    return StartError("the server cannot start: the reason is above")
