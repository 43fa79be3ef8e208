"""A request that is admitted: what it holds until the engine has no more work with it."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from app.adapters.registry import Adapters
from app.serving.admission import Ticket
from app.serving.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Admitted:
    """`deadline` is in the event loop's time, None: none. `until_begun` cancels whoever waits."""

    ticket: Ticket
    adapters: Adapters
    ledger: Ledger
    deadline: float | None
    until_begun: asyncio.Timeout
    lease: AsyncExitStack

    def begin(self) -> None:
        """The engine works for it: from now on, it ends at its deadline with what it has."""
        if not self.until_begun.expired():
            self.until_begun.reschedule(None)

    async def release(self) -> None:
        """The engine has no more work with it: others may have its places and adapters."""
        self.ticket.spend(self.ledger.num_completion_tokens)
        self.ticket.release()
        await self.lease.aclose()
