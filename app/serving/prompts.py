"""From what a prompt is made from to the prompt that an engine takes."""

import asyncio

from app.adapters.registry import Adapters
from app.engine.generation import Chat, PromptSource
from app.engine.protocol import Engine, Prompt
from app.errors import ContextWindowExceeded

# About, in English; what a text really has is known when it is tokenized.
CHARACTERS_A_TOKEN = 4
# More of them are rendered in a thread, as that takes longer than the way there and back.
FEW_MESSAGES = 16


def about_how_many_tokens(source: PromptSource) -> int:
    """Known before a text is tokenized."""
    match source:
        case list():
            return len(source)
        case Chat():
            return sum(about_how_many_tokens(each.content) for each in source.messages)
        case _:
            return 1 + len(source) // CHARACTERS_A_TOKEN


async def exact_text(engine: Engine, source: str | Chat) -> str:
    """What the tokens are made from, the chat template's text included. Raises `InvalidRequest`."""
    if isinstance(source, str):
        return source
    if len(source.messages) <= FEW_MESSAGES:
        return engine.chat_prompt(source)
    return await asyncio.to_thread(engine.chat_prompt, source)


async def tokenize(engine: Engine, source: str | Chat) -> list[int]:
    """The token ids of a text or of messages. Raises `InvalidRequest`."""
    return await tokenize_exact(engine, await exact_text(engine, source), source)


async def tokenize_exact(
    engine: Engine, exact: str, source: str | Chat, *, add_special_tokens: bool = True
) -> list[int]:
    """The token ids of the exact text of a source."""
    # A chat template has all special tokens.
    add_special_tokens = add_special_tokens and not isinstance(source, Chat)
    return await engine.tokenize(exact, add_special_tokens=add_special_tokens)


async def check_can_fit(engine: Engine, text: str, which: str, param: str) -> None:
    """Raises `ContextWindowExceeded` where it is certain before the text is tokenized."""
    window = engine.info.prompt_window
    whose = "the context window" if engine.info.encoder_window is None else "the encoder's window"
    if (excess := await engine.fewest_tokens(text) - window) > 0:
        raise ContextWindowExceeded(
            f"{which} has {window + excess:,} tokens or more; {whose} is {window:,}: "
            f"shorten the {param} by at least {excess:,} tokens",
            param=param,
        )


def prompt_of(
    index: int, token_ids: list[int], adapters: Adapters, decoder_ids: tuple[int, ...] = ()
) -> Prompt:
    """A prompt for the engine, with the adapters that the request holds."""
    return Prompt(
        index,
        token_ids,
        lora=adapters.lora_digest,
        soft_prompt=adapters.soft_prompt_digest,
        num_virtual_tokens=adapters.num_virtual_tokens,
        task=adapters.task,
        decoder_ids=decoder_ids,
    )
