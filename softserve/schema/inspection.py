"""`POST /inspect`: what the sampling controls do to the next token."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from softserve.schema.controls import AdapterChoice, FilterFields, RequestPromptControls, Sampling
from softserve.schema.fields import NonEmptyText
from softserve.schema.generation import SHOWN_ID, SHOWN_LORA, SHOWN_SOFT_PROMPT, AdapterUsed
from softserve.schema.prompts import SHOWN_MESSAGES, SHOWN_TOKEN_IDS, Conversation, TokenIds

Filter = Literal["min_p", "top_k", "top_p"]


class InspectBody(RequestPromptControls, AdapterChoice, FilterFields):
    """A prompt, and the controls whose effect on its next token is asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "The sky is", "temperature": 0.7, "top_k": 40, "top_p": 0.95}]
        }
    )

    prompt: NonEmptyText | None = Field(
        None, description="The text whose next token is inspected.", examples=["The sky is"]
    )
    messages: Conversation | None = Field(
        None,
        description="In place of `prompt`: a conversation, in the model's own chat template.",
        examples=[SHOWN_MESSAGES],
    )
    prompt_token_ids: TokenIds | None = Field(
        None,
        description="In place of `prompt`: its tokens, taken as they are.",
        examples=[SHOWN_TOKEN_IDS],
    )
    num_tokens: int = Field(
        10, ge=1, le=1000, description="How many of the most likely tokens to show.", examples=[5]
    )


class TokenFateOut(BaseModel):
    """One token on its way through the controls."""

    token_id: int = Field(description="The token's id.", examples=[4461])
    token: str = Field(description="The token's text.", examples=[" blue"])
    probability: float = Field(description="As the model gives it.", examples=[0.31])
    after_temperature: float = Field(description="After temperature.", examples=[0.44])
    kept_by: dict[Filter, bool | None] = Field(
        description="Whether each filter keeps it, in the order in which they run; null where an "
        "earlier one removed it.",
        examples=[{"min_p": True, "top_k": True, "top_p": True}],
    )
    final: float = Field(
        description="The probability with which it is sampled, renormalized.", examples=[0.46]
    )


class InspectAnswer(BaseModel):
    """What `POST /inspect` answers."""

    id: str = Field(
        description="The request's id, also in the x-request-id header.",
        examples=[SHOWN_ID],
    )
    model: str = Field(description="The base model.", examples=["SmolLM2-135M-Instruct"])
    adapter: AdapterUsed | None = Field(
        None, description="The LoRA adapter, where one was named.", examples=[SHOWN_LORA]
    )
    soft_prompt: AdapterUsed | None = Field(
        None, description="The soft prompt, where one was named.", examples=[SHOWN_SOFT_PROMPT]
    )
    prompt_tokens: int = Field(
        description="Tokens of the prompt, without a soft prompt's; of an encoder-decoder model, "
        "those that its decoder starts with as well.",
        examples=[3],
    )
    virtual_tokens: int = Field(description="Virtual tokens of the soft prompt.", examples=[0])
    vocabulary_size: int = Field(description="Tokens in all.", examples=[49152])
    tokens: list[TokenFateOut] = Field(
        description="The most likely tokens, best first.", examples=[[]]
    )
    num_surviving: int = Field(
        description="Tokens of the whole vocabulary that can be sampled.", examples=[17]
    )
    surviving_mass: float = Field(
        description="Their probability after temperature, together.", examples=[0.951]
    )
    sampling: Sampling = Field(description="The controls in effect.")
