"""A prompt template, as it is written in a file and sent in a request, and `/icl/templates`."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from softserve.schema.controls import AdapterChoice, PromptControls, SamplingFields
from softserve.schema.fields import Count, NonEmptyText, Text, refuse_what_is_not_text
from softserve.schema.versions import NameFields, VersionFields

Selection = Literal["first", "random", "similar", "diverse"]

OUTPUT = "output"
MAX_VARIABLES = 32
MAX_EXAMPLES = 1000
MAX_LABELS = 100
MAX_FORMAT_LENGTH = 4096
MAX_TEXT_LENGTH = 32_768
# Past five or six examples there is little to gain.
DEFAULT_MAX_SHOTS = 6
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"


def _number_or_auto(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (is_number and 0 <= value <= MAX_EXAMPLES):
        raise PydanticCustomError(
            "not_shots", "must be a number from 0 to {most}, or auto", {"most": MAX_EXAMPLES}
        )
    return value


Shots = int | Literal["auto"]
# Neither this nor an input is a union for pydantic: each member would have an error of its own.
ShotsField = Annotated[
    Any,
    AfterValidator(_number_or_auto),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_EXAMPLES}, {"const": "auto"}]}
    ),
]


def _text_or_texts(value: Any) -> Any:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("not_an_input", "must be a text or a list of texts")
    for text in texts:
        refuse_what_is_not_text(text)
    return value


InputValue = Annotated[
    Any,
    AfterValidator(_text_or_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
# A text, or a list of texts, for each input variable.
Inputs = dict[str, InputValue]
# The inputs, and the text that is wanted for them as `output`.
Example = dict[str, InputValue]
Examples = Annotated[list[Example], Field(max_length=MAX_EXAMPLES)]
FormatText = Annotated[Text, Field(min_length=1, max_length=MAX_FORMAT_LENGTH)]

SHOWN_EXAMPLE = {"review": "It broke on the second day.", OUTPUT: "negative"}
SHOWN_TEMPLATE: dict[str, Any] = {
    "instruction": "Say whether the review is positive or negative.",
    "input_variables": ["review"],
    "example_format": "Review: {{ review }}\nSentiment: {{ output }}",
    "query_format": "Review: {{ review }}\nSentiment:",
    "labels": ["positive", "negative"],
    "examples": [SHOWN_EXAMPLE],
}


class Template(PromptControls, AdapterChoice, SamplingFields):
    """How a prompt is built from inputs: an instruction, examples, and the query at the end."""

    description: Annotated[Text, Field(max_length=MAX_TEXT_LENGTH)] = Field(
        "", description="What it is for.", examples=["The sentiment of a review."]
    )
    instruction: Annotated[Text, Field(max_length=MAX_TEXT_LENGTH)] = Field(
        "",
        description="What comes first, as it is.",
        examples=["Say whether the review is positive or negative."],
    )
    input_variables: Annotated[
        list[Annotated[Text, Field(pattern=VARIABLE)]],
        Field(min_length=1, max_length=MAX_VARIABLES),
    ] = Field(description="The names of the inputs.", examples=[["review"]])
    example_format: FormatText = Field(
        description="An example, in Jinja2, with the inputs and `output`.",
        examples=["Review: {{ review }}\nSentiment: {{ output }}"],
    )
    query_format: FormatText = Field(
        description="What is asked, in Jinja2, with the inputs.",
        examples=["Review: {{ review }}\nSentiment:"],
    )
    separator: Annotated[Text, Field(max_length=256)] = Field(
        "\n\n", description="Between instruction, examples and query.", examples=["\n\n"]
    )
    examples_as_turns: bool = Field(
        False,
        description="With `use_chat_template`: the instruction is the system message, and each "
        "example a user's message and the assistant's answer to it.",
        examples=[False],
    )
    examples: Examples = Field(
        default_factory=list,
        description="Each with every input and the `output` that is wanted.",
        examples=[[SHOWN_EXAMPLE]],
    )
    labels: Annotated[
        list[Annotated[NonEmptyText, Field(max_length=256)]], Field(max_length=MAX_LABELS)
    ] = Field(
        default_factory=list,
        description="The outputs that there can be: each answer then gives their probabilities.",
        examples=[["positive", "negative"]],
    )
    selection: Selection = Field(
        "first",
        description="How examples are chosen, unless a request says otherwise.",
        examples=["first"],
    )
    max_shots: Count = Field(
        DEFAULT_MAX_SHOTS,
        description="The most examples that `shots: auto` takes.",
        examples=[DEFAULT_MAX_SHOTS],
    )
    warm: bool = Field(
        False,
        description="Compute what all prompts begin with, into the prefix cache, when it becomes "
        "live and when the server starts.",
        examples=[True],
    )

    def canonical(self) -> str:
        """Its content, in one form whatever it was written in."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Its version: the SHA-256 of its content, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


class TemplateVersionOut(VersionFields):
    """One version of a template."""


class TemplateSummary(NameFields):
    """A template: a name, and the versions that it has and had."""

    description: str = Field(description="What it is for.", examples=["The sentiment of a review."])
    num_examples: int = Field(description="How many examples it has.", examples=[6])
    versions: list[TemplateVersionOut] = Field(description="Newest first.", examples=[[]])


class TemplateOut(TemplateSummary):
    """A template, and the content of its live version."""

    template: Template | None = Field(
        description="What is live; null: it is not served.", examples=[SHOWN_TEMPLATE]
    )


class TemplateList(BaseModel):
    """Every template, by name."""

    templates: list[TemplateSummary] = Field(description="By name.", examples=[[]])
