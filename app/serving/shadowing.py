"""Shadows: copies of requests on a second version, compared with the live answers, thrown away.

A copy begins when the live answer has ended, and nobody waits for it. It is in nobody's way: it
is skipped where the engine has much to do or no room for its adapters, given up as soon as a
request waits for a place or for room, and ends when its shadow does, and when the server does.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from contextvars import Context
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import structlog

from app.access.caller import Caller
from app.adapters.registry import AdapterRegistry
from app.engine.generation import CompletionKey, GenerationChunk, GenerationRequest
from app.engine.protocol import Decoding, Engine, Prompt
from app.errors import ServerFull, SoftserveError, Unavailable
from app.serving.admission import Admission
from app.serving.ledger import Ledger
from app.serving.turns import Wish
from app.tasks import end, gather
from app.versions.names import Names
from app.versions.shadows import Shadow, ShadowTally
from softserve.schema.controls import Sampling

log = structlog.get_logger(__name__)

# Of the engine's places, the part that may be held, copies included, when one more copy begins.
MAX_LOAD = 1 / 4
# Where the engine schedules by priority: behind every request.
PRIORITY = -1
# Who holds the places of copies. No key has such a name.
COPIES = Caller("(copies)", frozenset())


@dataclass(frozen=True, slots=True)
class Again:
    """What a copy runs, while it holds its adapters."""

    sampling: Sampling
    prompts: Sequence[Prompt]

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.sampling.num_sequences

    @property
    def num_tokens(self) -> int:
        """At most."""
        prompts = sum(prompt.num_tokens for prompt in self.prompts)
        return prompts + self.num_sequences * self.sampling.max_new_tokens


# Begins what is to run on the version of this digest.
BeginAgain = Callable[[str], AbstractAsyncContextManager[Again]]


@dataclass(frozen=True, slots=True)
class Copy:
    """What is to run on the shadow of a name, when the live answer has ended."""

    names: Names[Any]
    name: str
    shadow: Shadow
    tally: ShadowTally
    begin_again: BeginAgain

    @property
    def is_wanted(self) -> bool:
        """Not so any more when the shadow has ended, or begun anew."""
        record = self.names.store.record(self.name)
        return record is not None and record.shadow == self.shadow


class Shadowing:
    """Runs the copies of one server."""

    def __init__(self, engine: Engine, registry: AdapterRegistry, admission: Admission) -> None:
        self._engine = engine
        self._registry = registry
        self._admission = admission
        self._places = admission.places
        self._running: set[asyncio.Task[None]] = set()

    def copies(
        self, names: Names[Any], name: str, digest: str, begin_again: BeginAgain
    ) -> list[Copy]:
        """One copy or none of a request that runs on this version of a name."""
        record = names.store.record(name)
        if record is None or record.shadow is None or record.live != digest:
            return []
        if not record.shadow.takes_one():
            return []
        return [Copy(names, name, record.shadow, names.tally(name), begin_again)]

    def follow(
        self,
        request: GenerationRequest,
        chunks: AsyncGenerator[GenerationChunk],
        ledger: Ledger,
        copies: Sequence[Copy],
    ) -> AsyncGenerator[GenerationChunk]:
        """The chunks of a request, as they come; when all have been read, its copies begin."""
        return self._followed(request, chunks, ledger, copies) if copies else chunks

    async def close(self) -> None:
        """End the copies that run."""
        await end(self._running)

    async def _followed(
        self,
        request: GenerationRequest,
        chunks: AsyncGenerator[GenerationChunk],
        ledger: Ledger,
        copies: Sequence[Copy],
    ) -> AsyncGenerator[GenerationChunk]:
        live = _Answer()
        async with aclosing(chunks):
            async for chunk in chunks:
                live.add(chunk)
                yield chunk
        live.seconds = ledger.seconds_in_engine()
        if not live.is_whole or self._admission.refusal is not None:
            return
        for copy in copies:
            # Not a part of the request, of its trace neither.
            task = asyncio.create_task(self._run(request, live, copy), context=Context())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, request: GenerationRequest, live: "_Answer", copy: Copy) -> None:
        told = {
            "request_id": request.request_id,
            "name": copy.name,
            "version": copy.shadow.digest,
        }
        try:
            shadow = await self._answer(copy)
            _compare(live, shadow, copy.tally, is_greedy=request.sampling.greedy)
        except _Unwanted:
            return
        except Unavailable:
            copy.tally.skipped += 1
        except SoftserveError as error:
            copy.tally.failed += 1
            log.warning("a request fails on its shadow", **told, why=error.message)
        except Exception:
            copy.tally.failed += 1
            log.exception("a request fails on its shadow", **told)

    async def _answer(self, copy: Copy) -> "_Answer":
        """The whole answer on the shadow. Raises `Unavailable` where it is in the way."""
        self._check_spare(1)
        async with copy.begin_again(copy.shadow.digest) as again:
            self._check_spare(again.num_sequences)
            wish = Wish(COPIES, again.num_sequences, again.num_tokens, PRIORITY)
            async with self._places.hold(wish):
                answer = _Answer()
                began_at = time.perf_counter()
                await gather(
                    self._complete(copy, prompt, again.sampling, answer) for prompt in again.prompts
                )
                answer.seconds = time.perf_counter() - began_at
                return answer

    async def _complete(
        self, copy: Copy, prompt: Prompt, sampling: Sampling, answer: "_Answer"
    ) -> None:
        priority = PRIORITY if self._engine.info.schedules_by_priority else 0
        decoding = Decoding(sampling, priority=priority)
        running = self._engine.generate(f"shadow-{uuid.uuid4().hex}", prompt, decoding)
        async with aclosing(running) as chunks:
            async for chunk in chunks:
                answer.add(chunk)
                if not copy.is_wanted:
                    raise _Unwanted
                if self._places.num_waiting or self._registry.is_short_of_room:
                    raise ServerFull("a request needs what the copy holds")
                if not answer.is_whole:
                    raise ServerFull("the copy was ended in the engine")

    def _check_spare(self, num_sequences: int) -> None:
        most = max(1, int(self._places.capacity * MAX_LOAD))
        # Those that wait for their adapters to load hold no places yet.
        busy = max(self._places.num_held + num_sequences, len(self._running))
        if self._places.num_waiting or busy > most:
            raise ServerFull("the engine has too much to do for a copy")


class _Unwanted(Exception):
    """The shadow has ended."""


class _Answer:
    """The completions of one request, and how long the engine worked for them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_whole = True
        self.texts: dict[CompletionKey, str] = {}
        self.token_ids: dict[CompletionKey, list[int]] = {}

    def add(self, chunk: GenerationChunk) -> None:
        # Any other reason to finish is the server's: the model was not done.
        self.is_whole &= chunk.finish_reason in {None, "stop", "length"}
        self.texts[chunk.key] = self.texts.get(chunk.key, "") + chunk.text
        self.token_ids.setdefault(chunk.key, []).extend(chunk.token_ids)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids.values()))


def _compare(live: _Answer, shadow: _Answer, tally: ShadowTally, *, is_greedy: bool) -> None:
    """Count what a completed copy has in common with its live answer."""
    tally.completed += 1
    tally.live_seconds += live.seconds
    tally.shadow_seconds += shadow.seconds
    tally.live_tokens += live.num_tokens
    tally.shadow_tokens += shadow.num_tokens
    if not is_greedy:
        return
    for key, token_ids in live.token_ids.items():
        tally.compared += 1
        tally.equal += live.texts[key] == shadow.texts[key]
        tally.agreement += agreement(token_ids, shadow.token_ids[key])


def agreement(one: Sequence[int], other: Sequence[int]) -> float:
    """The tokens before the first that differs, of those of the longer sequence."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    longer = max(len(one), len(other))
    return sum(1 for _ in alike) / longer if longer else 1.0
