"""What a stream of `/generate` or `/icl/generate` sends: pieces of text, and the ends."""

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag

from softserve.schema.controls import Sampling
from softserve.schema.fields import SHOWN_DIGEST
from softserve.schema.generation import (
    SHOWN_ID,
    SHOWN_LORA,
    SHOWN_SOFT_PROMPT,
    AdapterUsed,
    FinishReason,
    PositionLogprobsOut,
    TimingsOut,
    UsageOut,
)
from softserve.schema.icl import PromptUsed, TemplateUsed

# What the last event holds in place of an object, and the name of the one that a failure has.
DONE = "[DONE]"
ERROR = "error"


class EventFields(BaseModel):
    """Which completion it is of."""

    prompt_index: int = Field(description="Which prompt of the list, from 0.", examples=[0])
    index: int = Field(description="Which of the n completions, from 0.", examples=[0])
    text: str = Field(description="What is new; joined, a completion's text.", examples=[" Paris"])


class Piece(EventFields):
    """A piece of a completion."""

    token_ids: list[int] | None = Field(
        None, description="The tokens since the piece before, where asked for.", examples=[[7042]]
    )
    logprobs: list[PositionLogprobsOut] | None = Field(
        None, description="One entry per token, where asked for.", examples=[[]]
    )


class CompletionEnd(EventFields):
    """The end of a completion; its text is empty."""

    finish_reason: FinishReason = Field(description="Why it ended.", examples=["stop"])
    id: str = Field(description="The request's id.", examples=[SHOWN_ID])
    model: str = Field(description="The base model.", examples=["SmolLM2-135M-Instruct"])
    sampling: Sampling = Field(description="The controls in effect.")
    adapter: AdapterUsed | None = Field(
        None, description="The LoRA adapter, where one was named.", examples=[SHOWN_LORA]
    )
    soft_prompt: AdapterUsed | None = Field(
        None, description="The soft prompt, where one was named.", examples=[SHOWN_SOFT_PROMPT]
    )
    usage: UsageOut = Field(description="Token counts of this completion.")
    timings: TimingsOut = Field(description="Where the request's time went so far.")
    template: TemplateUsed | None = Field(
        None,
        description="In `/icl/generate`: the template.",
        examples=[{"name": "sentiment", "version": SHOWN_DIGEST}],
    )
    prompt: PromptUsed | None = Field(
        None, description="In `/icl/generate`: how the prompt was made.", examples=[None]
    )


def _kind(event: Any) -> str:
    has_ended = "finish_reason" in event if isinstance(event, dict) else hasattr(event, "usage")
    return "end" if has_ended else "piece"


StreamEvent = Annotated[
    Annotated[Piece, Tag("piece")] | Annotated[CompletionEnd, Tag("end")], Discriminator(_kind)
]
