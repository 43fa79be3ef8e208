"""Bounds the work in flight and refuses early: before a body is read, as far as that can be known.

It alone knows whether the server takes work: `/health/ready` reads the same `refusal`. What it has
admitted waits for its turn at the engine's `places`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from app.access.caller import Caller
from app.access.quotas import Accounts, Charge
from app.access.rate import Rate
from app.errors import (
    EngineStarting,
    InvalidRequest,
    RequestTimedOut,
    ServerFull,
    Unavailable,
)
from app.serving.places import Place, Places
from app.serving.shares import Shares
from app.serving.turns import Wish


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for. `num_prompt_tokens` is an estimate: nothing is tokenized yet.

    `field` is the one that asks for more than one sequence of a prompt.
    """

    num_sequences: int
    num_prompt_tokens: int
    max_new_tokens: int
    priority: int = 0
    field: str = "n"


class Ticket:
    """An admitted request: what it counts for until the engine has no more work with it."""

    def __init__(self, admission: "Admission", caller: Caller, demand: Demand) -> None:
        self._admission = admission
        self._caller = caller
        self._demand = demand
        self._account = admission.accounts.of(caller)
        self._charge = Charge(
            demand.num_prompt_tokens, demand.num_sequences * demand.max_new_tokens
        )
        self._num_waiting_prompt_tokens = 0
        self._counted = ExitStack()

    def begin(self) -> None:
        """Raises `QuotaExceeded` or `ServerFull`; then it counts for nothing."""
        with ExitStack() as counted:
            self._account.check()
            counted.enter_context(self._admission.counted(self._caller, self._demand))
            counted.enter_context(self._account.charged(self._charge))
            counted.callback(self._set_waiting, 0)
            self._set_waiting(self._demand.num_prompt_tokens)
            self._counted = counted.pop_all()

    def know_prompt_tokens(self, number: int) -> None:
        """The prompts are tokenized: it was an estimate until now."""
        self._account.correct(self._charge, number)
        self._set_waiting(number)

    @asynccontextmanager
    async def place(self, num_sequences: int, num_prompt_tokens: int) -> AsyncIterator[Place]:
        """Hold a prompt's places at the engine, once it is their turn."""
        num_tokens = num_prompt_tokens + num_sequences * self._demand.max_new_tokens
        wish = Wish(self._caller, num_sequences, num_tokens, self._demand.priority)
        async with self._admission.places.hold(wish) as place:
            self._charge.has_begun = True
            self._set_waiting(max(0, self._num_waiting_prompt_tokens - num_prompt_tokens))
            yield place

    def timed_out(self) -> RequestTimedOut:
        """The error of a request whose time was up before its turn."""
        return self._admission.timed_out()

    def spend(self, num_completion_tokens: int) -> None:
        """The engine has made so many tokens in all."""
        self._charge.completion_tokens = num_completion_tokens

    def release(self) -> None:
        """The engine has no more work with it, whether its client has read all of it or not."""
        self._counted.close()

    def _set_waiting(self, num_prompt_tokens: int) -> None:
        self._admission.num_waiting_prompt_tokens += (
            num_prompt_tokens - self._num_waiting_prompt_tokens
        )
        self._num_waiting_prompt_tokens = num_prompt_tokens


class Admission:
    """Counts what is in flight. Closed at first: `open` it when the engine can generate."""

    def __init__(
        self,
        max_sequences: int,
        max_waiting_prompt_tokens: int,
        max_running_sequences: int | None = None,
    ) -> None:
        self.places = Places()
        self.accounts = Accounts()
        self.refusal: Unavailable | None = EngineStarting()
        self.num_waiting_prompt_tokens = 0
        self.num_open_requests = 0
        self._shares = Shares(max_sequences)
        self._max_waiting_prompt_tokens = max_waiting_prompt_tokens
        self._max_running_sequences = max_running_sequences
        self._ended = Rate()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def sequences_in_flight(self) -> int:
        """The completions that the engine works on, or will."""
        return self._shares.held

    def open(self, max_running_sequences: int) -> None:
        """Take work, of which the engine can run so many completions at a time."""
        self.places.open(min(max_running_sequences, self._max_running_sequences or sys.maxsize))
        self.refusal = None

    def close(self, refusal: Unavailable) -> None:
        """Refuse everything new; what is in flight stays."""
        self.refusal = refusal

    def reopen(self, refusal: Unavailable) -> bool:
        """Take work again, if it is still this that closes it; whether it was."""
        was_this = self.refusal is refusal
        if was_this:
            self.refusal = None
        return was_this

    def check(self, caller: Caller) -> None:
        """Refuse a request whose body is not known yet, if any body would be refused.

        Raises:
            QuotaExceeded: the caller is over one of its quotas.
            Unavailable: the server is full, or takes no work.
        """
        if self.refusal is not None:
            raise self.refusal
        self.accounts.of(caller).check()
        self._check_room(caller, num_sequences=1, num_prompt_tokens=1)

    @contextmanager
    def admit(self, caller: Caller, demand: Demand) -> Iterator[Ticket]:
        """A request that is open meanwhile. Its ticket can be released earlier.

        Raises:
            InvalidRequest: more completions than the server ever admits at once.
            QuotaExceeded: the caller is over one of its quotas.
            Unavailable: the server is full, or takes no work.
        """
        if self.refusal is not None:
            raise self.refusal
        if demand.num_sequences > self._shares.capacity:
            raise InvalidRequest(
                f"the request asks for {demand.num_sequences:,} completions (prompts times "
                f"{demand.field}) and the server runs at most {self._shares.capacity:,} at once: "
                "split the request",
                param=demand.field,
            )
        ticket = Ticket(self, caller, demand)
        ticket.begin()
        self.num_open_requests += 1
        self._idle.clear()
        try:
            yield ticket
        finally:
            ticket.release()
            self.num_open_requests -= 1
            if self.num_open_requests == 0:
                self._idle.set()

    @contextmanager
    def counted(self, caller: Caller, demand: Demand) -> Iterator[None]:
        """Its completions are in flight meanwhile. Raises `ServerFull` where they cannot be."""
        number = demand.num_sequences
        self._check_room(caller, number, demand.num_prompt_tokens)
        self._shares.take(caller, number)
        try:
            yield
        finally:
            self._shares.give_back(caller, number)
            self._ended.count(number)

    def seconds_until_room(self, num_sequences: int = 1) -> float:
        """How long until so many completions of those in flight have ended, as things go now."""
        return self._ended.seconds_for(num_sequences)

    def timed_out(self) -> RequestTimedOut:
        """The error of a request whose time was up before the engine worked for it."""
        return RequestTimedOut(
            "the request's time was up before the engine came to it: try again, or give it more "
            "with timeout_seconds",
            retry_after_seconds=self.seconds_until_room(),
        )

    async def wait_until_idle(self) -> None:
        """Wait until every admitted request has its answer."""
        await self._idle.wait()

    def _check_room(self, caller: Caller, num_sequences: int, num_prompt_tokens: int) -> None:
        held, shares = self._shares.held, self._shares
        if not shares.may_take(caller, num_sequences):
            room = shares.unreserved(caller)
            kept = ", some of them for other keys" if shares.fit(num_sequences) else ""
            raise ServerFull(
                f"the server has {held:,} completions in flight and admits {shares.capacity:,}"
                f"{kept}: try again in a moment",
                retry_after_seconds=self.seconds_until_room(held + num_sequences - room),
            )
        excess = (
            self.num_waiting_prompt_tokens + num_prompt_tokens - self._max_waiting_prompt_tokens
        )
        # One that is larger than all that may wait is taken when nothing else waits.
        if self.num_waiting_prompt_tokens and excess > 0:
            raise ServerFull(
                f"prompts of {self.num_waiting_prompt_tokens:,} tokens wait for the engine, and "
                f"{self._max_waiting_prompt_tokens:,} may: try again in a moment",
                retry_after_seconds=self.seconds_until_room(),
            )
