"""The sampling controls as fields, and what every field has in common: strict types, real text.

Both a request and a stored template have them; each is checked alike.
"""

import unicodedata
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

ALLOWED_CONTROL_CHARACTERS = "\t\n\r"
MAX_INTEGER = 2**63 - 1
NOT_TEXT = {"Cc": "control character", "Cs": "lone surrogate"}


def refuse_what_is_not_text(text: str) -> str:
    """Control characters and lone surrogates are an error of the field."""
    for position, character in enumerate(text):
        kind = NOT_TEXT.get(unicodedata.category(character))
        if kind is not None and character not in ALLOWED_CONTROL_CHARACTERS:
            raise PydanticCustomError(
                "not_text",
                "the {kind} U+{code} at position {position} is not text: remove it",
                {"kind": kind, "code": f"{ord(character):04X}", "position": position},
            )
    return text


Text = Annotated[str, AfterValidator(refuse_what_is_not_text)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
NonEmptyText = Annotated[Text, Field(min_length=1)]
# A name, an @ and a digest.
MAX_REFERENCE_LENGTH = 64 + 1 + 64
AdapterReference = Annotated[Text, Field(min_length=1, max_length=MAX_REFERENCE_LENGTH)]


def one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def one_or_more_schema(min_items: int) -> WithJsonSchema:
    text = {"type": "string", "minLength": 1}
    return WithJsonSchema(
        {"anyOf": [text, {"type": "array", "items": text, "minItems": min_items}]}
    )


StopStrings = Annotated[
    list[NonEmptyText], BeforeValidator(one_or_more), one_or_more_schema(min_items=0)
]


class Body(BaseModel):
    """A request body: strict types, no unknown fields, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PromptControls(Body):
    """How a prompt is turned into tokens."""

    use_chat_template: bool = Field(
        False,
        description="Wrap each prompt as a user message with the model's own chat template.",
        examples=[True],
    )
    system: NonEmptyText | None = Field(
        None,
        description="The system message; only with `use_chat_template`.",
        examples=["You answer in one sentence."],
    )


class AdapterChoice(Body):
    """Which adapters a request runs with: either, both or none."""

    adapter: AdapterReference | None = Field(
        None,
        description="A LoRA adapter, by name or by `name@version`.",
        examples=["support-intent-lora"],
    )
    soft_prompt: AdapterReference | None = Field(
        None,
        description="A soft prompt, by name or by `name@version`.",
        examples=["support-intent-prompt"],
    )


class FilterControls(Body):
    """The controls that shape the next-token distribution."""

    temperature: float | None = Field(
        None,
        ge=0.0,
        le=2.0,
        description="0 is greedy decoding, the default unless a filter is given; from 0.01 to 2, "
        "low is careful and high is adventurous.",
        examples=[0.7],
    )
    top_k: PositiveCount | None = Field(
        None, description="Sample among the k most likely tokens only.", examples=[40]
    )
    top_p: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Sample among the most likely tokens that together hold this probability.",
        examples=[0.95],
    )
    min_p: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Drop tokens less likely than this fraction of the most likely one.",
        examples=[0.05],
    )


class SamplingFields(FilterControls):
    """Every sampling control."""

    max_new_tokens: PositiveCount | None = Field(
        None,
        description="The most tokens to generate (128 unless given); a limit, not a promise.",
        examples=[64],
    )
    min_new_tokens: Count | None = Field(
        None,
        description="Tokens to generate before an end-of-sequence token or a stop string counts.",
        examples=[8],
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.1,
        le=10.0,
        description="Above 1, tokens of the prompt and the completion become less likely.",
        examples=[1.1],
    )
    presence_penalty: float | None = Field(
        None,
        ge=-2.0,
        le=2.0,
        description="Above 0, tokens that the completion holds already become less likely.",
        examples=[0.5],
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-2.0,
        le=2.0,
        description="As `presence_penalty`, for each time that the completion holds the token.",
        examples=[0.5],
    )
    seed: Count | None = Field(
        None,
        description="The same seed and request give the same text; only with random sampling.",
        examples=[7],
    )
    stop: StopStrings = Field(
        default_factory=list,
        description="End a completion before this text, or before any of these.",
        examples=[["\n\n", "User:"]],
    )
    n: PositiveCount = Field(
        1,
        description="Completions of each prompt; above 1 only with random sampling.",
        examples=[2],
    )
    ignore_eos: bool = Field(
        False,
        description="Go on after an end-of-sequence token, up to `max_new_tokens`.",
        examples=[False],
    )

    def sampling_given(self) -> dict[str, Any]:
        """The controls that were given, by name."""
        return self.model_dump(include=SAMPLING_CONTROLS, exclude_unset=True, exclude_none=True)


SAMPLING_CONTROLS = set(SamplingFields.model_fields)
