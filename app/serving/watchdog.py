"""Refuses new work while the engine does not answer: it hangs, or somebody has stopped it."""

import asyncio
from typing import NoReturn

import structlog

from app.engine.protocol import Engine
from app.errors import EngineStalled
from app.serving.admission import Admission

log = structlog.get_logger(__name__)

PING_INTERVAL_SECONDS = 2.0


class Watchdog:
    """Pings the engine; closes `admission` while a ping is older than `timeout_seconds`.

    What has been admitted waits, and goes on when the engine does.
    """

    def __init__(self, engine: Engine, admission: Admission, timeout_seconds: float) -> None:
        self._engine = engine
        self._admission = admission
        self._timeout_seconds = timeout_seconds

    async def run(self) -> NoReturn:
        """Watch a started engine. Raises what a ping raises."""
        while True:
            await self._ping()
            await asyncio.sleep(PING_INTERVAL_SECONDS)

    async def _ping(self) -> None:
        is_busy = self._admission.sequences_in_flight > 0
        answer = asyncio.create_task(self._engine.ping(is_busy=is_busy))
        try:
            await asyncio.wait([answer], timeout=self._timeout_seconds)
            if not answer.done():
                await self._refuse_until(answer)
            await answer
        finally:
            answer.cancel()

    async def _refuse_until(self, answer: asyncio.Task[None]) -> None:
        stalled = EngineStalled(
            f"the engine has not answered for {self._timeout_seconds:g} seconds: send this "
            "elsewhere, or try again"
        )
        self._admission.close(stalled)
        log.error("engine stalled", timeout_seconds=self._timeout_seconds)
        await asyncio.wait([answer])
        # Not if the server has begun to drain meanwhile.
        if self._admission.reopen(stalled):
            log.info("engine answers again")
