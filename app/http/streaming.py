"""Answers that follow the generation: collected into one, or streamed as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import asdict
from functools import partial
from typing import Any, Generic, TypeVar

import structlog
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.datastructures import State
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.engine.generation import CompletionKey, GenerationChunk, PositionLogprobs
from app.errors import SoftserveError
from app.http.answers import adapters_used, prompt_used, template_used
from app.http.dependencies import json_answer
from app.http.errors import describe
from app.serving.generation import Generation
from app.tasks import end
from softserve.schema.generation import (
    AnswerFields,
    CompletionOut,
    FinishReason,
    GenerateAnswer,
    PositionLogprobsOut,
    TokenLogprobOut,
)
from softserve.schema.icl import IclGenerateAnswer

T = TypeVar("T")

# What begins when it is entered, and is free when it is left.
Running = AbstractAsyncContextManager[Generation[T]]
Completions = Running[GenerationChunk]

log = structlog.get_logger(__name__)

DONE = b"data: [DONE]\n\n"


async def answer(request: Request, running: Completions, asked: AnswerFields) -> Response:
    """The answer to a generation, in the form that was asked for."""
    if asked.stream:
        return EventStream(running, partial(_chunk_events, asked), (DONE,))
    return json_answer(
        await until_disconnect(request.receive, collect(running, asked, request.state))
    )


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, or cancel it when the client goes.

    Raises:
        ClientDisconnect: the client went first.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        await end((working, leaving))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(running: Running[T], state: State) -> list[T]:
    """All that a reader gets."""
    async with running as generation:
        state.ledger = generation.ledger
        return [item async for item in generation.items]


async def collect(running: Completions, asked: AnswerFields, state: State) -> GenerateAnswer:
    """All chunks as one answer, in order of prompt, then of index."""
    pieces: dict[CompletionKey, list[GenerationChunk]] = {}
    async with running as generation:
        state.ledger = generation.ledger
        async for chunk in generation.items:
            pieces.setdefault(chunk.key, []).append(chunk)
    fields: dict[str, Any] = {
        "id": generation.request.request_id,
        "model": generation.model,
        "completions": [_completion(asked, pieces[key]) for key in sorted(pieces)],
        "sampling": generation.request.sampling,
        **adapters_used(generation.adapters),
        "usage": generation.ledger.usage(),
        "timings": generation.ledger.timings(),
    }
    if (few_shot := generation.few_shot) is None:
        return GenerateAnswer(**fields)
    return IclGenerateAnswer(
        **fields,
        template=template_used(few_shot.template),
        prompts=[prompt_used(few_shot, index) for index in range(len(few_shot.prompts))],
    )


def _completion(asked: AnswerFields, chunks: list[GenerationChunk]) -> CompletionOut:
    last = chunks[-1]
    finish_reason: FinishReason = last.finish_reason or "abort"
    return CompletionOut(
        prompt_index=last.prompt_index,
        index=last.index,
        text="".join(chunk.text for chunk in chunks),
        finish_reason=finish_reason,
        **_details(
            asked,
            tuple(token for chunk in chunks for token in chunk.token_ids),
            tuple(position for chunk in chunks for position in chunk.logprobs),
        ),
    )


def _details(
    asked: AnswerFields, token_ids: tuple[int, ...], logprobs: tuple[PositionLogprobs, ...]
) -> dict[str, Any]:
    """The token ids and log probabilities, where asked for."""
    details: dict[str, Any] = {}
    if asked.return_token_ids:
        details["token_ids"] = list(token_ids)
    if asked.logprobs is not None:
        details["logprobs"] = [_position(position) for position in logprobs]
    return details


def _position(position: PositionLogprobs) -> PositionLogprobsOut:
    return PositionLogprobsOut(
        **asdict(position.chosen), top=[TokenLogprobOut(**asdict(token)) for token in position.top]
    )


class EventStream(StreamingResponse, Generic[T]):
    """Server-sent events. The first item is awaited before the status is sent.

    After the first byte the status is spent: an error becomes an `error` event, and the stream ends
    without what is `last` of a whole one.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        running: Running[T],
        events_of: Callable[[Generation[T], T], Iterable[bytes]],
        last: Sequence[bytes] = (),
    ) -> None:
        self._running = running
        self._events_of = events_of
        self._last = last
        # Without the second, nginx holds events back until its buffer is full.
        super().__init__((), headers={"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        state = scope["state"]
        async with self._running as generation:
            state["ledger"] = generation.ledger
            first = await anext(generation.items)
            # From here on the status says nothing of how the stream ends.
            state["outcome"] = "aborted"
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events(generation, first, scope)) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        # Last: whoever has the whole answer counts as gone.
        await send({"type": "http.response.body", "body": b""})

    async def _events(
        self, generation: Generation[T], first: T, scope: Scope
    ) -> AsyncGenerator[bytes]:
        state = scope["state"]
        try:
            for event in self._events_of(generation, first):
                yield event
            async for item in generation.items:
                for event in self._events_of(generation, item):
                    yield event
            for event in self._last:
                yield event
            state["outcome"] = "success"
        except Exception as error:
            if not isinstance(error, SoftserveError):
                log.exception("request failed")
            state["outcome"] = "failed"
            _, body = describe(error, scope["path"])
            state["error_type"] = body["error"]["type"]
            yield b"event: error\n" + _event(body)


def _chunk_events(
    asked: AnswerFields, generation: Generation[GenerationChunk], chunk: GenerationChunk
) -> list[bytes]:
    key = {"prompt_index": chunk.prompt_index, "index": chunk.index}
    details = _details(asked, chunk.token_ids, chunk.logprobs)
    events = []
    if chunk.text or (details and chunk.token_ids):
        events.append(_event({**key, "text": chunk.text, **details}))
    if chunk.finish_reason is not None:
        events.append(_event({**key, **_ending(generation, chunk)}))
    return events


def _ending(generation: Generation[GenerationChunk], chunk: GenerationChunk) -> dict[str, Any]:
    ending: dict[str, Any] = {
        "text": "",
        "finish_reason": chunk.finish_reason,
        **{
            field: used.model_dump(exclude_unset=True)
            for field, used in adapters_used(generation.adapters).items()
        },
        "usage": generation.ledger.usage_of(chunk.key),
        "timings": generation.ledger.timings(),
        "id": generation.request.request_id,
        "model": generation.model,
        "sampling": generation.request.sampling,
    }
    if (few_shot := generation.few_shot) is not None:
        used = prompt_used(few_shot, chunk.prompt_index)
        ending["template"] = template_used(few_shot.template)
        ending["prompt"] = used.model_dump(exclude_unset=True)
    return ending


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + to_json(data) + b"\n\n"
