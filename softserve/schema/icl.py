"""In-context learning: `/icl/render` and `/icl/generate`."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from softserve.schema.controls import AdapterChoice, SamplingFields, Scheduling
from softserve.schema.fields import SHOWN_DIGEST, Count, Reference, one_or_more
from softserve.schema.generation import SHOWN_ID, AnswerFields, GenerateAnswer
from softserve.schema.templates import (
    SHOWN_EXAMPLE,
    SHOWN_TEMPLATE,
    Example,
    Examples,
    Inputs,
    Selection,
    ShotsField,
    Template,
)

SHOWN_INPUTS: dict[str, Any] = {"review": "The soup was cold and the waiter rude."}
# Parts of an error's location that no client has written.
BY_NAME, INLINE = "<name>", "<inline>"


def _kind(template: Any) -> str:
    return INLINE if isinstance(template, dict | Template) else BY_NAME


TemplateChoice = Annotated[
    Annotated[Reference, Tag(BY_NAME)] | Annotated[Template, Tag(INLINE)],
    Discriminator(_kind),
]
SomeInputs = Annotated[list[Inputs], Field(min_length=1), one_or_more(dict, "an object")]


class RenderBody(AdapterChoice, SamplingFields):
    """A template, inputs, and how many examples to show with them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"template": SHOWN_TEMPLATE, "inputs": SHOWN_INPUTS, "shots": 1}]
        }
    )

    template: TemplateChoice = Field(
        description="A template's name, `name@version`, or a whole template.",
        examples=[SHOWN_TEMPLATE],
    )
    inputs: SomeInputs = Field(
        description="The inputs of one prompt, or a list of those, answered in order.",
        examples=[SHOWN_INPUTS, [SHOWN_INPUTS]],
    )
    shots: ShotsField = Field(
        "auto",
        description="How many examples to show; `auto` is as many as fit, up to the template's "
        "max_shots. Those that do not fit are left out whole, least useful first.",
        examples=[1, "auto"],
    )
    selection: Selection | None = Field(
        None,
        description="Which examples: the `first` ones, `random` ones, those most `similar` to the "
        "inputs, or `diverse` ones; without it, as the template says.",
        examples=["first"],
    )
    selection_seed: Count | None = Field(
        None, description="Of selection `random`: the same seed, the same examples.", examples=[7]
    )
    examples: Examples | None = Field(
        None, description="Examples in place of the template's.", examples=[[SHOWN_EXAMPLE]]
    )


class IclGenerateBody(RenderBody, AnswerFields, Scheduling):
    """As for a rendering, and what is to be told of the completions."""


class TemplateUsed(BaseModel):
    """The template that made the prompts."""

    name: str | None = Field(
        description="Its name; null where it came with the request.", examples=["sentiment"]
    )
    version: str = Field(description="The digest of its content.", examples=[SHOWN_DIGEST])


class LabelOut(BaseModel):
    """How likely one label is."""

    label: str = Field(description="The label.", examples=["positive"])
    probability: float = Field(description="Among all of the labels.", examples=[0.83])
    logprob: float = Field(
        description="The model's own: the sum over the label's tokens.", examples=[-1.7]
    )


class LabelsOut(BaseModel):
    """What the model's own scores of the labels say, whatever the completion is."""

    best: str = Field(description="The likeliest label.", examples=["positive"])
    labels: list[LabelOut] = Field(description="In the template's order.", examples=[[]])


class ExampleUsed(BaseModel):
    """An example of the template, or of the request."""

    place: int = Field(description="Its place among the examples, from 0.", examples=[0])
    example: Example = Field(description="The example.", examples=[SHOWN_EXAMPLE])
    why: str | None = Field(None, description="Why it was left out.", examples=["it did not fit"])


class PromptUsed(BaseModel):
    """How one prompt was made."""

    prompt_index: int = Field(description="Which of the inputs, from 0.", examples=[0])
    prompt_tokens: int = Field(
        description="Its tokens, special ones included, without a soft prompt's.", examples=[61]
    )
    virtual_tokens: int = Field(description="Virtual tokens of the soft prompt.", examples=[0])
    shots: int = Field(description="How many examples it shows.", examples=[1])
    num_dropped: int = Field(
        description="How many were chosen and did not fit into the context window.", examples=[0]
    )
    examples: list[ExampleUsed] = Field(
        description="The examples, in the order of the prompt.", examples=[[]]
    )
    classification: LabelsOut | None = Field(
        None,
        description="Of a template with labels, in `/icl/generate`.",
        examples=[{"best": "positive", "labels": []}],
    )


class RenderedPrompt(PromptUsed):
    """A prompt as the model would get it."""

    prompt: str = Field(
        description="The exact text, the chat template's included.",
        examples=["Review: The soup was cold.\nSentiment:"],
    )
    left_out: list[ExampleUsed] = Field(
        description="The examples that are not shown, and why.", examples=[[]]
    )


class RenderAnswer(BaseModel):
    """What `POST /icl/render` answers."""

    id: str = Field(
        description="The request's id, also in the x-request-id header.",
        examples=[SHOWN_ID],
    )
    template: TemplateUsed = Field(description="The template.")
    prompts: list[RenderedPrompt] = Field(description="In order of the inputs.", examples=[[]])


class IclGenerateAnswer(GenerateAnswer):
    """What `POST /icl/generate` answers without `stream`."""

    template: TemplateUsed = Field(description="The template.")
    prompts: list[PromptUsed] = Field(
        description="How each prompt was made, in order of the inputs.", examples=[[]]
    )
