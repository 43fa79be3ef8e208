"""The controls of a generation. Each sampling control is declared once, in `Sampling`."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from softserve.schema.fields import (
    Body,
    Choices,
    Count,
    EarlyStopping,
    JsonObject,
    NonEmptyText,
    PositiveCount,
    Reference,
    StopStrings,
)


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


class DecoderPrompt(Body):
    """What a decoder starts with, which has its prompt from an encoder."""

    decoder_prompt: NonEmptyText | None = Field(
        None,
        description="Of an encoder-decoder model, whose encoder has the prompt: what its decoder "
        "starts with, and is not in the answer.",
        examples=["Summary:"],
    )


class RequestPromptControls(DecoderPrompt, PromptControls):
    """Those of a request; a template has no text for a decoder."""


class AdapterChoice(Body):
    """Which adapters a request runs with: either, both or none."""

    adapter: Reference | None = Field(
        None,
        description="A LoRA adapter, by name or by `name@version`.",
        examples=["support-intent-lora"],
    )
    soft_prompt: Reference | None = Field(
        None,
        description="A soft prompt, by name or by `name@version`, with `#task` where it has tasks.",
        examples=["support-intent-prompt"],
    )


class Scheduling(Body):
    """When a request is to be worked on, and for how long."""

    timeout_seconds: float | None = Field(
        None,
        gt=0.0,
        description="End what is unfinished after this time with the text that it has; 503 if the "
        "engine has not begun by then.",
        examples=[30.0],
    )
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Higher comes first; only where the engine schedules by priority, up to what "
        "the key allows.",
        examples=[0],
    )


class Sampling(BaseModel):
    """The sampling controls in effect; every field holds the value that the engine uses.

    A default is what has no effect. The fields of requests and templates, the options of the
    command line and the engine's parameters follow from these.
    """

    model_config = ConfigDict(frozen=True)

    greedy: bool = Field(
        True,
        description="Whether decoding is greedy: temperature is 0, and there is one beam.",
        examples=[True],
    )
    max_new_tokens: PositiveCount = Field(
        128,
        description="The most tokens to generate; a limit, not a promise: an end-of-sequence token "
        "or a stop string ends a completion earlier.",
        examples=[64],
    )
    min_new_tokens: Count = Field(
        0,
        description="Tokens to generate before an end-of-sequence token or a stop string counts.",
        examples=[8],
    )
    temperature: float = Field(
        0.0,
        ge=0.0,
        le=2.0,
        description="0 is greedy decoding, the default unless a filter is given; from 0.01 to 2, "
        "low is careful and high is adventurous.",
        examples=[0.7],
    )
    top_k: PositiveCount | None = Field(
        None, description="Sample among the k most likely tokens only.", examples=[40]
    )
    top_p: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Sample among the most likely tokens that together hold this probability.",
        examples=[0.95],
    )
    min_p: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Drop tokens less likely than this fraction of the most likely one.",
        examples=[0.05],
    )
    repetition_penalty: float = Field(
        1.0,
        ge=0.1,
        le=10.0,
        description="Above 1, tokens of the prompt and the completion become less likely.",
        examples=[1.1],
    )
    presence_penalty: float = Field(
        0.0,
        ge=-2.0,
        le=2.0,
        description="Above 0, tokens that the completion holds already become less likely.",
        examples=[0.5],
    )
    frequency_penalty: float = Field(
        0.0,
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
        [],
        description="End a completion before this text, or before any of these.",
        examples=[["\n\n", "User:"]],
    )
    n: PositiveCount = Field(
        1,
        description="Completions of each prompt; above 1 only with random sampling, or as many as "
        "there are beams.",
        examples=[2],
    )
    num_beams: int = Field(
        1,
        ge=1,
        le=16,
        description="Of an encoder-decoder model: above 1, beam search, which keeps so many "
        "completions on the way and answers with the most likely ones, the best first.",
        examples=[4],
    )
    length_penalty: float = Field(
        1.0,
        ge=-5.0,
        le=5.0,
        description="Beams are compared by log probability / length ** `length_penalty`: above 0 "
        "longer ones gain, below 0 shorter ones.",
        examples=[2.0],
    )
    early_stopping: EarlyStopping = Field(
        False,
        description="End a beam search when `num_beams` completions have ended (`true`), when a "
        'better one is unlikely (`false`), or when there can be none (`"never"`).',
        examples=[True],
    )
    ignore_eos: bool = Field(
        False,
        description="Go on after an end-of-sequence token, up to `max_new_tokens`.",
        examples=[False],
    )
    json_schema: JsonObject | None = Field(
        None,
        description="A JSON schema: the completion is JSON that is valid by it.",
        examples=[{"type": "object", "properties": {"city": {"type": "string"}}}],
    )
    regex: NonEmptyText | None = Field(
        None,
        description="A regular expression that the whole completion matches.",
        examples=["[0-9]{4}-[0-9]{2}-[0-9]{2}"],
    )
    choice: Choices | None = Field(
        None,
        description="The texts that there are: the completion is one of them.",
        examples=[["positive", "negative"]],
    )

    @property
    def num_sequences(self) -> int:
        """What is generated at a time for a prompt."""
        return max(self.n, self.num_beams)


STRUCTURES = ("json_schema", "regex", "choice")
FILTERS = ("top_k", "top_p", "min_p")
BEAMS = ("num_beams", "length_penalty", "early_stopping")
CONTROLS = tuple(name for name in Sampling.model_fields if name != "greedy")


class _Given(Body):
    def sampling_given(self) -> dict[str, Any]:
        """The controls that were given, by name."""
        return self.model_dump(include=set(CONTROLS), exclude_unset=True, exclude_none=True)


def as_given(names: Iterable[str]) -> type[_Given]:
    """A body with these controls, each None where it was not given."""
    fields: dict[str, Any] = {}
    for name in names:
        control = Sampling.model_fields[name]
        # What is made here, mypy cannot follow.
        kind: Any = Annotated[control.annotation, Field(), *control.metadata] | None
        fields[name] = (
            kind,
            Field(None, description=control.description, examples=control.examples),
        )
    return create_model("Given", __base__=_Given, **fields)


class FilterFields(as_given(["temperature", *FILTERS])):  # type: ignore[misc]
    """The controls that shape the next-token distribution, as they were given."""


class SamplingFields(as_given(CONTROLS)):  # type: ignore[misc]
    """Every sampling control, as it was given."""
