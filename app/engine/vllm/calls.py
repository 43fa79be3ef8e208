"""Calls to the engine's processes, other than generation."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

from app.errors import EngineDied

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

LOOK_INTERVAL_SECONDS = 0.2
DIED_MESSAGE = "the engine has died: the server restarts, try again"


async def answer_of(llm: "AsyncLLM", call: Awaitable[T]) -> T:
    """What a call answers.

    Raises:
        EngineDied: also when that happens after the call, for whose answer vLLM waits for ever.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    answer = asyncio.ensure_future(call)
    try:
        while not answer.done():
            if llm.errored:
                raise EngineDied(DIED_MESSAGE)
            await asyncio.wait([answer], timeout=LOOK_INTERVAL_SECONDS)
        return answer.result()
    except EngineDeadError as error:
        raise EngineDied(DIED_MESSAGE) from error
    finally:
        answer.cancel()
