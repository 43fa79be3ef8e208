"""The work of one request, done ahead of whoever reads it, by so much and no more.

The engine's work is a task of its own: its places are free as soon as the last token is made, even
if nobody has read it. What a slow reader has not taken is bounded: beyond it, the completions of
that prompt are paused in the engine, or ended there.

What the reader gets is the work's affair: `Run` holds the places of its prompts, keeps its time and
its pace, and has the ledger hear of every token.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Generic, TypeVar

from app.engine.generation import GenerationChunk
from app.engine.protocol import Engine, Prompt
from app.serving.admitted import Admitted
from app.serving.places import Place
from app.settings import SlowReader
from app.tasks import end

T = TypeVar("T")

_numbers = count()


class Unread(Generic[T]):
    """What is made and not read, and how many tokens it took."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._items: deque[tuple[T, int]] = deque()
        self._maker: asyncio.Task[None] | None = None
        self._made = asyncio.Event()
        self._read = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self._num_tokens > self._max_tokens

    def put(self, item: T, num_tokens: int) -> None:
        self._items.append((item, num_tokens))
        self._num_tokens += num_tokens
        self._made.set()

    def close(self, made: asyncio.Task[None]) -> None:
        """Nothing more comes: who has read all meets the failure of what made it, if any."""
        self._maker = made
        self._made.set()

    async def wait_for_reader(self) -> None:
        """Until half of what may be unread is read: a pause pays for its start again."""
        while self._num_tokens > self._max_tokens // 2:
            self._read.clear()
            await self._read.wait()

    async def items(self) -> AsyncGenerator[T]:
        while True:
            while self._items:
                item, num_tokens = self._items.popleft()
                self._num_tokens -= num_tokens
                self._read.set()
                yield item
            if self._maker is not None:
                self._maker.result()
                return
            self._made.clear()
            await self._made.wait()


class Run(Generic[T]):
    """The work of an admitted request, whose prompts each have their turn at the engine.

    At `deadline`, in the event loop's time, what is unfinished ends with what it has.
    """

    def __init__(
        self,
        engine: Engine,
        request_id: str,
        admitted: Admitted,
        unread: Unread[T],
        slow_reader: SlowReader,
    ) -> None:
        # Two requests in flight may have the same id: it is the client's.
        self.id = f"{request_id}-{next(_numbers)}"
        self._engine = engine
        self._admitted = admitted
        self._unread = unread
        self._slow_reader = slow_reader
        self._prompts: set[int] = set()
        self._num_tokens = 0
        self._is_over = False

    async def items(self, work: Callable[[], Awaitable[None]]) -> AsyncGenerator[T]:
        """What the work puts, as it comes. Leaving early aborts what is running."""
        working = asyncio.create_task(self._work(work))
        working.add_done_callback(self._unread.close)
        tasks = [working, asyncio.create_task(self._end_in_time())]
        try:
            async with aclosing(self._unread.items()) as items:
                async for item in items:
                    yield item
        finally:
            await end(tasks)

    def put(self, item: T) -> None:
        """Give it to the reader. It took the tokens that were recorded since the last one."""
        self._unread.put(item, self._num_tokens)
        self._num_tokens = 0

    @asynccontextmanager
    async def turn(
        self, prompt: Prompt, num_sequences: int, num_completions: int | None = None
    ) -> AsyncIterator["Turn"]:
        """Hold a prompt's places at the engine, once it is their turn.

        `num_completions` of the sequences that are generated are told of, None: all.

        Raises:
            RequestTimedOut: the request's time was up before.
        """
        waiting = asyncio.timeout_at(self._admitted.deadline)
        asked_at = time.perf_counter()
        ticket = self._admitted.ticket
        try:
            async with waiting, ticket.place(num_sequences, prompt.num_tokens) as place:
                waiting.reschedule(None)
                self._admitted.begin()
                self._admitted.ledger.has_turn(prompt.index, time.perf_counter() - asked_at)
                self._prompts.add(prompt.index)
                place.spend(prompt.num_tokens)
                yield Turn(self, prompt, place, num_sequences / (num_completions or num_sequences))
        except TimeoutError as error:
            if not waiting.expired():
                raise
            raise ticket.timed_out() from error

    def record(self, chunk: GenerationChunk) -> GenerationChunk:
        """The ledger hears of it. What was cut off by the deadline has its reason."""
        if self._is_over and chunk.finish_reason == "abort":
            chunk = replace(chunk, finish_reason="timeout")
        self._num_tokens += _size(chunk)
        self._admitted.ledger.add(chunk)
        return chunk

    async def keep_pace(self, prompt: Prompt, place: Place) -> None:
        """Wait for a reader who is too far behind."""
        if not self._unread.is_full:
            return
        if self._slow_reader == "abort" or not self._engine.info.pauses_completions:
            await self._engine.abort(self.id, prompt.index)
            return
        await self._engine.pause(self.id, prompt.index)
        place.give_back()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._admitted.deadline):
                await self._unread.wait_for_reader()
                await place.take()
        await self._engine.resume(self.id, prompt.index)

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        finally:
            await self._admitted.release()

    async def _end_in_time(self) -> None:
        """At the deadline, have the engine end what is running, paused or not."""
        if self._admitted.deadline is None:
            return
        await asyncio.sleep(self._admitted.deadline - asyncio.get_running_loop().time())
        self._is_over = True
        for index in list(self._prompts):
            await self._engine.abort(self.id, index)


class Turn:
    """A prompt that the engine works on, `work_per_token` times as much as one sees of it."""

    def __init__(self, run: Run[T], prompt: Prompt, place: Place, work_per_token: float) -> None:
        self.request_id = run.id
        self.prompt = prompt
        self._run = run
        self._place = place
        self._work_per_token = work_per_token

    def record(self, chunk: GenerationChunk) -> GenerationChunk:
        self._place.spend(round(self._work_per_token * len(chunk.token_ids)))
        return self._run.record(chunk)

    async def keep_pace(self) -> None:
        await self._run.keep_pace(self.prompt, self._place)


def _size(chunk: GenerationChunk) -> int:
    """Its tokens, and those that are told of in its log probabilities."""
    return len(chunk.token_ids) + sum(len(position.top) for position in chunk.logprobs)
