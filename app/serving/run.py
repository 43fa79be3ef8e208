"""The completions of one request, made ahead of whoever reads them, by so much and no more.

The engine's work is a task of its own: its places are free as soon as the last token is made, even
if nobody has read it. What a slow reader has not taken is bounded: beyond it, the completions of
that prompt are paused in the engine, or ended there.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import count

from app.engine.generation import GenerationChunk, GenerationRequest
from app.engine.protocol import Decoding, Engine, Prompt
from app.serving.admitted import Admitted
from app.serving.places import Place
from app.settings import SlowReader
from app.tasks import end, gather

_numbers = count()


class Unread:
    """The chunks that are made and not read."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._chunks: deque[GenerationChunk] = deque()
        self._maker: asyncio.Task[None] | None = None
        self._made = asyncio.Event()
        self._read = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self._num_tokens > self._max_tokens

    def put(self, chunk: GenerationChunk) -> None:
        self._chunks.append(chunk)
        self._num_tokens += _size(chunk)
        self._made.set()

    def close(self, made: asyncio.Task[None]) -> None:
        """Nothing more comes: who has read all meets the failure of what made them, if any."""
        self._maker = made
        self._made.set()

    async def wait_for_reader(self) -> None:
        """Until half of what may be unread is read: a pause pays for its start again."""
        while self._num_tokens > self._max_tokens // 2:
            self._read.clear()
            await self._read.wait()

    async def chunks(self) -> AsyncGenerator[GenerationChunk]:
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._num_tokens -= _size(chunk)
                self._read.set()
                yield chunk
            if self._maker is not None:
                self._maker.result()
                return
            self._made.clear()
            await self._made.wait()


def _size(chunk: GenerationChunk) -> int:
    """Its tokens, and those that are told of in its log probabilities."""
    return len(chunk.token_ids) + sum(len(position.top) for position in chunk.logprobs)


class Run:
    """Has the engine complete the prompts of an admitted request.

    At `deadline`, in the event loop's time, what is unfinished ends with what it has.
    """

    def __init__(
        self,
        engine: Engine,
        request: GenerationRequest,
        prompts: Sequence[Prompt],
        admitted: Admitted,
        unread: Unread,
        slow_reader: SlowReader,
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._admitted = admitted
        self._unread = unread
        self._slow_reader = slow_reader
        self._decoding = Decoding(request.sampling, request.logprobs, request.priority)
        # Two requests in flight may have the same id: it is the client's.
        self._id = f"{request.request_id}-{next(_numbers)}"
        self._is_over = False

    async def chunks(self) -> AsyncGenerator[GenerationChunk]:
        """The chunks, as they come. Leaving early aborts what is running."""
        working = asyncio.create_task(self._work())
        working.add_done_callback(self._unread.close)
        tasks = [working, asyncio.create_task(self._end_in_time())]
        try:
            async with aclosing(self._unread.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            await end(tasks)

    async def _work(self) -> None:
        try:
            await gather(self._complete(prompt) for prompt in self._prompts)
        finally:
            await self._admitted.release()

    async def _complete(self, prompt: Prompt) -> None:
        """One prompt, from the wait for its places to its last token."""
        num_sequences = self._decoding.sampling.n
        waiting = asyncio.timeout_at(self._admitted.deadline)
        asked_at = time.perf_counter()
        try:
            async with (
                waiting,
                self._admitted.ticket.place(num_sequences, len(prompt.token_ids)) as place,
            ):
                waiting.reschedule(None)
                self._admitted.begin()
                self._admitted.ledger.has_turn(prompt.index, time.perf_counter() - asked_at)
                await self._generate(prompt, place)
        except TimeoutError:
            if not waiting.expired():
                raise
            for index in range(num_sequences):
                self._record(_never_begun(prompt, index))

    async def _generate(self, prompt: Prompt, place: Place) -> None:
        place.spend(len(prompt.token_ids))
        async with aclosing(self._engine.generate(self._id, prompt, self._decoding)) as chunks:
            async for chunk in chunks:
                place.spend(len(chunk.token_ids))
                self._record(chunk)
                if self._unread.is_full:
                    await self._let_the_reader_come(prompt, place)

    def _record(self, chunk: GenerationChunk) -> None:
        if self._is_over and chunk.finish_reason == "abort":
            chunk = replace(chunk, finish_reason="timeout")
        self._admitted.ledger.add(chunk)
        self._unread.put(chunk)

    async def _let_the_reader_come(self, prompt: Prompt, place: Place) -> None:
        if self._slow_reader == "abort" or not self._engine.info.pauses_completions:
            await self._engine.abort(self._id, prompt.index)
            return
        await self._engine.pause(self._id, prompt.index)
        place.give_back()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._admitted.deadline):
                await self._unread.wait_for_reader()
                await place.take()
        await self._engine.resume(self._id, prompt.index)

    async def _end_in_time(self) -> None:
        """At the deadline, have the engine end what is running, paused or not."""
        if self._admitted.deadline is None:
            return
        await asyncio.sleep(self._admitted.deadline - asyncio.get_running_loop().time())
        self._is_over = True
        for prompt in self._prompts:
            await self._engine.abort(self._id, prompt.index)


def _never_begun(prompt: Prompt, index: int) -> GenerationChunk:
    """The only chunk of a completion whose time was up before its turn."""
    return GenerationChunk(
        prompt_index=prompt.index,
        index=index,
        text="",
        token_ids=(),
        num_prompt_tokens=len(prompt.token_ids),
        num_cached_tokens=0,
        queue_seconds=0.0,
        finish_reason="timeout",
        num_virtual_tokens=prompt.num_virtual_tokens,
    )
