"""OpenAI's protocol on the fake engine: enough of it to tell who answered, and when."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from app.engine.openai import OpenAICall, Turns
from app.engine.protocol import Decoding, Prompt
from app.errors import InvalidRequest
from softserve.schema.controls import Sampling

if TYPE_CHECKING:
    from tests.fake_engine import FakeEngine

NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
NOT_HERE = ("tools", "response_format", "structured_outputs", "use_beam_search")


class FakeOpenAI:
    """`OpenAI` for tests. A choice's text is what `FakeEngine.generate` makes of its prompt."""

    def __init__(self, engine: "FakeEngine") -> None:
        self._engine = engine

    async def answer(self, call: OpenAICall, turns: Turns) -> AsyncGenerator[bytes]:
        for name in NOT_HERE:
            if name in call.fields:
                raise InvalidRequest(f"this engine has no {name}: leave it out", param=name)
        prompts = [turns.prompt(token_ids) for token_ids in self._prompts(call)]
        pieces = _merged([self._pieces(call, turns, prompt) for prompt in prompts])
        texts: dict[int, str] = {}
        async with aclosing(pieces):
            async for index, text, reason in pieces:
                texts[index] = texts.get(index, "") + text
                if call.fields.get("stream"):
                    yield b"data: " + _json(call, [_choice(call, index, text, reason)]) + b"\n\n"
        if not call.fields.get("stream"):
            choices = [_choice(call, index, texts[index], "stop") for index in sorted(texts)]
            yield _json(call, choices)

    async def tokenize(self, fields: Mapping[str, Any]) -> bytes:
        tokens = list(str(fields.get("prompt", "")).encode())
        return json.dumps({"tokens": tokens, "count": len(tokens)}).encode()

    async def detokenize(self, token_ids: list[int]) -> bytes:
        return json.dumps({"prompt": bytes(token_ids).decode(errors="replace")}).encode()

    def _prompts(self, call: OpenAICall) -> list[list[int]]:
        match call.operation:
            case "completions":
                sources = call.fields["prompt"]
            case "chat":
                messages = call.fields["messages"]
                sources = ["".join(f"[{each['role']}]{each.get('content')}" for each in messages)]
            case "responses":
                sources = [str(call.fields["input"])]
        return [list(each.encode()) if isinstance(each, str) else each for each in sources]

    async def _pieces(
        self, call: OpenAICall, turns: Turns, prompt: Prompt
    ) -> AsyncGenerator[tuple[int, str, str | None]]:
        given = {NAMES.get(name, name): value for name, value in call.fields.items()}
        known = {name: value for name, value in given.items() if name in Sampling.model_fields}
        sampling = Sampling(**known)
        async with turns.begin(prompt, sampling.n) as turn:
            chunks = self._engine.generate(turn.request_id, prompt, Decoding(sampling))
            async with aclosing(chunks):
                async for chunk in chunks:
                    turn.record(chunk)
                    yield prompt.index * sampling.n + chunk.index, chunk.text, chunk.finish_reason
                    await turn.keep_pace()


async def _merged(
    generators: list[AsyncGenerator[tuple[int, str, str | None]]],
) -> AsyncGenerator[tuple[int, str, str | None]]:
    """All items, as they come."""
    items: asyncio.Queue[tuple[int, str, str | None] | None] = asyncio.Queue()

    async def pump() -> None:
        async def take(generator: AsyncGenerator[tuple[int, str, str | None]]) -> None:
            async with aclosing(generator):
                async for item in generator:
                    items.put_nowait(item)

        try:
            async with asyncio.TaskGroup() as tasks:
                for generator in generators:
                    tasks.create_task(take(generator))
        finally:
            items.put_nowait(None)

    pumping = asyncio.create_task(pump())
    try:
        while (item := await items.get()) is not None:
            yield item
        try:
            await pumping
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


def _choice(call: OpenAICall, index: int, text: str, reason: str | None) -> dict[str, Any]:
    content: dict[str, Any] = {"text": text}
    if call.operation == "chat":
        message = "delta" if call.fields.get("stream") else "message"
        content = {message: {"role": "assistant", "content": text}}
    return {"index": index, **content, "finish_reason": reason}


def _json(call: OpenAICall, choices: list[dict[str, Any]]) -> bytes:
    return json.dumps({"id": call.request_id, "model": call.model, "choices": choices}).encode()
