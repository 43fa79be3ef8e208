"""OpenAI's protocol, as far as the engine speaks it: a call in, the answer's own bytes out.

What a call's fields mean, and how an answer is written, is the engine's. Whose turn it is, which
adapters it runs with and what is counted of it is not: for each of its prompts it asks `Turns`.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from app.engine.generation import GenerationChunk
from app.engine.protocol import Prompt

Operation = Literal["completions", "chat", "responses"]


@dataclass(frozen=True, slots=True)
class OpenAICall:
    """What is asked, in the words of the protocol.

    `fields` are those that were given, by their names on the wire; `model` is what the answer says.
    A higher `priority` is more important, where the engine schedules by it.
    """

    request_id: str
    operation: Operation
    fields: Mapping[str, Any]
    model: str
    priority: int = 0


def max_tokens_of(fields: Mapping[str, Any]) -> int | None:
    """The most tokens to generate; None: as many as the context window has room for."""
    names = ("max_completion_tokens", "max_output_tokens", "max_tokens")
    return next((fields[name] for name in names if name in fields), None)


class Turn(Protocol):
    """A prompt that the engine may work on."""

    @property
    def request_id(self) -> str: ...

    @property
    def prompt(self) -> Prompt: ...

    def record(self, chunk: GenerationChunk) -> GenerationChunk:
        """Count what was generated."""

    async def keep_pace(self) -> None:
        """Wait for a reader who is too far behind."""


class Turns(Protocol):
    """Where the engine asks for the turns of one call."""

    def prompt(self, token_ids: list[int]) -> Prompt:
        """One more prompt of the call, with the adapters that it runs with."""

    def begin(self, prompt: Prompt, num_sequences: int) -> AbstractAsyncContextManager[Turn]:
        """Wait until it is the prompt's turn, and hold it. Raises `Unavailable`."""


class OpenAI(Protocol):
    """The operations of the protocol on a started engine."""

    def answer(self, call: OpenAICall, turns: Turns) -> AsyncGenerator[bytes]:
        """The answer: one JSON text, or server-sent events as they come.

        Raises:
            InvalidRequest: the call, or what the model can do with it.
            ContextWindowExceeded: a prompt and its completion do not fit.
        """

    async def tokenize(self, fields: Mapping[str, Any]) -> bytes:
        """The tokens of a `prompt` or of `messages`. Raises `InvalidRequest`."""

    async def detokenize(self, token_ids: list[int]) -> bytes:
        """The text of tokens. Raises `InvalidRequest`."""
