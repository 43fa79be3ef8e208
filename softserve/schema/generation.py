"""`POST /generate`: prompts in, completions out."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from softserve.schema.controls import (
    AdapterChoice,
    RequestPromptControls,
    Sampling,
    SamplingFields,
    Scheduling,
)
from softserve.schema.fields import SHOWN_DIGEST, Body
from softserve.schema.prompts import (
    SHOWN_MESSAGES,
    SHOWN_TOKEN_IDS,
    Conversations,
    Prompts,
    TokenPrompts,
)

FinishReason = Literal["stop", "length", "timeout", "abort"]

SHOWN_ID = "0d5c3f2be1c04a54a6f1c6ea8b9f7f10"
SHOWN_LORA = {"name": "support-intent-lora", "version": SHOWN_DIGEST}
SHOWN_SOFT_PROMPT = {"name": "support-intent-prompt", "version": "4d967a30111bf29f" * 4}


class AnswerFields(Body):
    """What is told of the completions, and how."""

    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Report each token's log probability as the model gives it (before the "
        "sampling controls), and this many of the most likely alternatives.",
        examples=[3],
    )
    return_token_ids: bool = Field(
        False, description="Report the ids of the generated tokens.", examples=[True]
    )
    stream: bool = Field(
        False, description="Answer with server-sent events, piece by piece.", examples=[True]
    )


class GenerateBody(RequestPromptControls, AdapterChoice, SamplingFields, AnswerFields, Scheduling):
    """One prompt or several, and how to complete them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "Tell me the capital of France.",
                    "use_chat_template": True,
                    "max_new_tokens": 20,
                }
            ]
        }
    )

    prompt: Prompts | None = Field(
        None,
        description="The text to complete, or a list of texts, answered in order.",
        examples=["The capital of France is", ["One, two,", "Red, green,"]],
    )
    messages: Conversations | None = Field(
        None,
        description="In place of `prompt`: a conversation whose next message is wanted, in the "
        "model's own chat template, or a list of conversations.",
        examples=[SHOWN_MESSAGES, [SHOWN_MESSAGES]],
    )
    prompt_token_ids: TokenPrompts | None = Field(
        None,
        description="In place of `prompt`: its tokens, taken as they are, or a list of those.",
        examples=[SHOWN_TOKEN_IDS, [SHOWN_TOKEN_IDS]],
    )


class TokenLogprobOut(BaseModel):
    """A token and its log probability as the model gives it."""

    token_id: int = Field(description="The token's id.", examples=[7042])
    token: str = Field(description="The token's text.", examples=[" Paris"])
    logprob: float = Field(description="Natural logarithm of its probability.", examples=[-0.21])


class PositionLogprobsOut(TokenLogprobOut):
    """The token that was chosen at one position, and the most likely ones there."""

    top: list[TokenLogprobOut] = Field(
        description="The most likely tokens at this position, best first; as many as asked for.",
        examples=[[{"token_id": 7042, "token": " Paris", "logprob": -0.21}]],
    )


class CompletionOut(BaseModel):
    """One completion of one prompt."""

    prompt_index: int = Field(description="Which prompt of the list, from 0.", examples=[0])
    index: int = Field(description="Which of the n completions, from 0.", examples=[0])
    text: str = Field(description="The generated text.", examples=["The capital is Paris."])
    finish_reason: FinishReason = Field(
        description="`stop`: an end-of-sequence token or a stop string; `length`: max_new_tokens; "
        "`timeout`: the request's time was up; `abort`: the server ended it, for instance while "
        "draining.",
        examples=["stop"],
    )
    token_ids: list[int] | None = Field(
        None, description="The generated tokens, where asked for.", examples=[[504, 3575]]
    )
    logprobs: list[PositionLogprobsOut] | None = Field(
        None, description="One entry per generated token, where asked for.", examples=[[]]
    )


class AdapterUsed(BaseModel):
    """The version of an adapter that made an answer."""

    name: str = Field(description="The adapter's name.", examples=[SHOWN_LORA["name"]])
    version: str = Field(description="The digest of the version's files.", examples=[SHOWN_DIGEST])
    task: int | None = Field(
        None, description="Of a multitask soft prompt: the task that was used.", examples=[None]
    )


class UsageOut(BaseModel):
    """Token counts of the whole request; a prompt counts once, whatever n is."""

    prompt_tokens: int = Field(
        description="Tokens of all prompts, without a soft prompt's; of an encoder-decoder model, "
        "those that its decoder starts with as well.",
        examples=[37],
    )
    virtual_tokens: int = Field(
        description="Virtual tokens of the soft prompt, counted with every prompt.", examples=[0]
    )
    completion_tokens: int = Field(
        description="Tokens generated, an end-of-sequence token included.", examples=[8]
    )
    cached_tokens: int = Field(
        description="Prompt tokens, virtual ones included, that came from the prefix cache.",
        examples=[0],
    )


class TimingsOut(BaseModel):
    """Where the time went, in milliseconds."""

    queue: float = Field(
        description="Waiting for the engine, the longest of all prompts.", examples=[0.1]
    )
    ttft: float = Field(description="From admission to the first token.", examples=[41.7])
    total: float = Field(description="From admission to the last token.", examples=[352.4])


class GenerateAnswer(BaseModel):
    """What `POST /generate` answers without `stream`."""

    id: str = Field(
        description="The request's id, also in the x-request-id header.",
        examples=[SHOWN_ID],
    )
    model: str = Field(description="The base model.", examples=["SmolLM2-135M-Instruct"])
    completions: list[CompletionOut] = Field(
        description="In order of prompt, then of index.",
        examples=[
            [
                {
                    "prompt_index": 0,
                    "index": 0,
                    "text": "The capital is Paris.",
                    "finish_reason": "stop",
                }
            ]
        ],
    )
    sampling: Sampling = Field(description="The controls in effect.")
    adapter: AdapterUsed | None = Field(
        None, description="The LoRA adapter, where one was named.", examples=[SHOWN_LORA]
    )
    soft_prompt: AdapterUsed | None = Field(
        None, description="The soft prompt, where one was named.", examples=[SHOWN_SOFT_PROMPT]
    )
    usage: UsageOut = Field(description="Token counts.")
    timings: TimingsOut = Field(description="Where the time went.")
