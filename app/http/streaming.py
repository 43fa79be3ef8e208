"""Answers that follow the generation: collected into one, or streamed as server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import structlog
from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.engine.generation import GenerationChunk, GenerationRequest, Place, PositionLogprobs
from app.engine.protocol import Engine
from app.errors import SoftserveError
from app.http.answers import adapters_used
from app.http.errors import describe
from app.telemetry.metrics import Outcome
from softserve.schema.generation import (
    CompletionOut,
    FinishReason,
    GenerateAnswer,
    PositionLogprobsOut,
    TimingsOut,
    TokenLogprobOut,
    UsageOut,
)

T = TypeVar("T")

log = structlog.get_logger(__name__)

DONE = b"data: [DONE]\n\n"


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, or cancel it when the client goes.

    Raises:
        ClientDisconnect: the client went first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(slots=True)
class Tally:
    """Token counts and latencies of one request, from its chunks."""

    started: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    queue_seconds: float = 0.0
    # The first chunk of each prompt, which says what is true of them all.
    prompts: dict[int, GenerationChunk] = field(default_factory=dict)
    completion_tokens: dict[Place, int] = field(default_factory=dict)

    def add(self, chunk: GenerationChunk) -> None:
        if self.first_token_at is None and chunk.token_ids:
            self.first_token_at = time.perf_counter()
        self.queue_seconds = max(self.queue_seconds, chunk.queue_seconds)
        self.prompts.setdefault(chunk.prompt_index, chunk)
        num_tokens = self.completion_tokens.get(chunk.place, 0) + len(chunk.token_ids)
        self.completion_tokens[chunk.place] = num_tokens

    def usage(self) -> UsageOut:
        """Of the whole request."""
        return _usage(self.prompts.values(), sum(self.completion_tokens.values()))

    def usage_of(self, place: Place) -> UsageOut:
        """Of one completion and its prompt."""
        return _usage([self.prompts[place[0]]], self.completion_tokens[place])

    def timings(self) -> TimingsOut:
        now = time.perf_counter()
        return TimingsOut(
            queue=_milliseconds(self.queue_seconds),
            ttft=_milliseconds((self.first_token_at or now) - self.started),
            total=_milliseconds(now - self.started),
        )


def _usage(prompts: Collection[GenerationChunk], completion_tokens: int) -> UsageOut:
    return UsageOut(
        prompt_tokens=sum(prompt.num_prompt_tokens for prompt in prompts),
        virtual_tokens=sum(prompt.num_virtual_tokens for prompt in prompts),
        completion_tokens=completion_tokens,
        cached_tokens=sum(prompt.num_cached_tokens for prompt in prompts),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


@dataclass(slots=True)
class Answering:
    """What an answer says besides the text, and which details the client asked for."""

    request: GenerationRequest
    engine: Engine
    return_token_ids: bool
    # What the end of a completion says besides, by its prompt's index.
    of_prompt: Callable[[int], dict[str, Any]] = lambda prompt_index: {}
    tally: Tally = field(default_factory=Tally)
    # Of a stream, whose status says nothing of how it ended.
    outcome: Outcome = "aborted"

    def details(
        self, token_ids: tuple[int, ...], logprobs: tuple[PositionLogprobs, ...]
    ) -> dict[str, Any]:
        """The token ids and log probabilities, where asked for."""
        details: dict[str, Any] = {}
        if self.return_token_ids:
            details["token_ids"] = list(token_ids)
        if self.request.logprobs is not None:
            details["logprobs"] = [_position(position) for position in logprobs]
        return details


def _position(position: PositionLogprobs) -> PositionLogprobsOut:
    return PositionLogprobsOut(
        **asdict(position.chosen), top=[TokenLogprobOut(**asdict(token)) for token in position.top]
    )


async def collect(answering: Answering, chunks: AsyncGenerator[GenerationChunk]) -> GenerateAnswer:
    """All chunks as one answer, in order of prompt, then of index."""
    pieces: dict[Place, list[GenerationChunk]] = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            answering.tally.add(chunk)
            pieces.setdefault(chunk.place, []).append(chunk)
    return GenerateAnswer(
        id=answering.request.request_id,
        model=answering.engine.info.model,
        completions=[_completion(answering, pieces[place]) for place in sorted(pieces)],
        sampling=answering.request.sampling,
        **adapters_used(answering.request, answering.tally.prompts[0]),
        usage=answering.tally.usage(),
        timings=answering.tally.timings(),
    )


def _completion(answering: Answering, chunks: list[GenerationChunk]) -> CompletionOut:
    last = chunks[-1]
    finish_reason: FinishReason = last.finish_reason or "abort"
    return CompletionOut(
        prompt_index=last.prompt_index,
        index=last.index,
        text="".join(chunk.text for chunk in chunks),
        finish_reason=finish_reason,
        **answering.details(
            tuple(token for chunk in chunks for token in chunk.token_ids),
            tuple(position for chunk in chunks for position in chunk.logprobs),
        ),
    )


class EventStream(StreamingResponse):
    """Server-sent events. The first chunk is awaited before the status is sent.

    After the first byte the status is spent: an error becomes an `error` event, and the stream ends
    without `[DONE]`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        answering: Answering,
        first: GenerationChunk,
        rest: AsyncGenerator[GenerationChunk],
    ) -> None:
        self._answering = answering
        self._chunks = rest
        super().__init__(
            _events(answering, first, rest),
            # Without the second, nginx holds events back until its buffer is full.
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A client that left before the first event never started the iteration.
            await self._chunks.aclose()
            scope["state"]["outcome"] = self._answering.outcome


async def _events(
    answering: Answering, first: GenerationChunk, rest: AsyncGenerator[GenerationChunk]
) -> AsyncGenerator[bytes]:
    try:
        for event in _chunk_events(answering, first):
            yield event
        async for chunk in rest:
            for event in _chunk_events(answering, chunk):
                yield event
        yield DONE
        answering.outcome = "success"
    except Exception as error:
        if not isinstance(error, SoftserveError):
            log.exception("request failed")
        answering.outcome = "failed"
        yield b"event: error\n" + _event(describe(error)[1])


def _chunk_events(answering: Answering, chunk: GenerationChunk) -> list[bytes]:
    answering.tally.add(chunk)
    place = {"prompt_index": chunk.prompt_index, "index": chunk.index}
    details = answering.details(chunk.token_ids, chunk.logprobs)
    events = []
    if chunk.text or (details and chunk.token_ids):
        events.append(_event({**place, "text": chunk.text, **details}))
    if chunk.finish_reason is not None:
        events.append(_event({**place, **_ending(answering, chunk)}))
    return events


def _ending(answering: Answering, chunk: GenerationChunk) -> dict[str, Any]:
    return {
        "text": "",
        "finish_reason": chunk.finish_reason,
        **adapters_used(answering.request, chunk),
        "usage": answering.tally.usage_of(chunk.place),
        "timings": answering.tally.timings(),
        "id": answering.request.request_id,
        "model": answering.engine.info.model,
        "sampling": answering.request.sampling,
        **answering.of_prompt(chunk.prompt_index),
    }


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + to_json(data) + b"\n\n"
