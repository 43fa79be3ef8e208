"""The wire format of in-context learning."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from app.controls import AdapterChoice, AdapterReference, Count, SamplingFields, one_or_more
from app.http.adapter_schemas import DIGEST
from app.http.schemas import GenerateAnswer
from app.icl.labels import LabelScore
from app.icl.store import TemplateRecord
from app.icl.template import (
    SHOWN_EXAMPLE,
    Example,
    Examples,
    Inputs,
    Selection,
    ShotsField,
    Template,
)
from app.in_context import FewShotPrompt, InContextRequest, Preparation

SHOWN_INPUTS: dict[str, Any] = {"review": "The soup was cold and the waiter rude."}
SHOWN_TEMPLATE: dict[str, Any] = {
    "instruction": "Say whether the review is positive or negative.",
    "input_variables": ["review"],
    "example_format": "Review: {{ review }}\nSentiment: {{ output }}",
    "query_format": "Review: {{ review }}\nSentiment:",
    "labels": ["positive", "negative"],
    "examples": [SHOWN_EXAMPLE],
}


# Parts of an error's location that no client has written.
BY_NAME, INLINE = "<name>", "<inline>"


def _kind(template: Any) -> str:
    return INLINE if isinstance(template, dict | Template) else BY_NAME


TemplateChoice = Annotated[
    Annotated[AdapterReference, Tag(BY_NAME)] | Annotated[Template, Tag(INLINE)],
    Discriminator(_kind),
]
SomeInputs = Annotated[list[Inputs], Field(min_length=1), BeforeValidator(one_or_more)]


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

    def to_request(self, request_id: str) -> InContextRequest:
        """The request in the domain's terms."""
        return InContextRequest(
            request_id=request_id,
            template=self.template,
            inputs=tuple(self.inputs),
            shots=self.shots,
            selection=self.selection,
            selection_seed=self.selection_seed,
            examples=None if self.examples is None else tuple(self.examples),
            sampling=self.sampling_given(),
            adapters=self.model_dump(include=set(AdapterChoice.model_fields), exclude_unset=True),
        )


class IclGenerateBody(RenderBody):
    """As for a rendering, and what is to be told of the completions."""

    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Report each token's log probability, and this many alternatives.",
        examples=[3],
    )
    return_token_ids: bool = Field(
        False, description="Report the ids of the generated tokens.", examples=[True]
    )
    stream: bool = Field(
        False, description="Answer with server-sent events, piece by piece.", examples=[True]
    )


class TemplateUsed(BaseModel):
    """The template that made the prompts."""

    name: str | None = Field(
        description="Its name; null where it came with the request.", examples=["sentiment"]
    )
    version: str = Field(description="The digest of its content.", examples=[DIGEST])

    @classmethod
    def of(cls, prepared: Preparation) -> "TemplateUsed":
        return cls(name=prepared.template.name, version=prepared.template.version)


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

    @classmethod
    def of(cls, scores: tuple[LabelScore, ...]) -> "LabelsOut":
        best = max(scores, key=lambda score: score.probability)
        return cls(
            best=best.label,
            labels=[
                LabelOut(label=each.label, probability=each.probability, logprob=each.logprob)
                for each in scores
            ],
        )


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

    @classmethod
    def of(cls, prepared: Preparation, prompt: FewShotPrompt) -> "PromptUsed":
        return cls(**_prompt_fields(prepared, prompt))


class RenderedPrompt(PromptUsed):
    """A prompt as the model would get it."""

    prompt: str = Field(
        description="The exact text, the chat template's included.",
        examples=["Review: The soup was cold.\nSentiment:"],
    )
    left_out: list[ExampleUsed] = Field(
        description="The examples that are not shown, and why.", examples=[[]]
    )

    @classmethod
    def of(cls, prepared: Preparation, prompt: FewShotPrompt) -> "RenderedPrompt":
        return cls(
            **_prompt_fields(prepared, prompt),
            prompt=prompt.text,
            left_out=_left_out(prepared, prompt),
        )


def _prompt_fields(prepared: Preparation, prompt: FewShotPrompt) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "prompt_index": prompt.index,
        "prompt_tokens": prompt.num_tokens,
        "virtual_tokens": prompt.num_virtual_tokens,
        "shots": len(prompt.shown),
        "num_dropped": len(prompt.dropped),
        "examples": [
            ExampleUsed(place=place, example=prepared.examples.examples[place])
            for place in prompt.shown
        ],
    }
    if prompt.labels:
        fields["classification"] = LabelsOut.of(prompt.labels)
    return fields


def _left_out(prepared: Preparation, prompt: FewShotPrompt) -> list[ExampleUsed]:
    reasons = dict.fromkeys(prompt.dropped, "it did not fit into the context window")
    num_asked = f"{prepared.num_shots} were asked for"
    return [
        ExampleUsed(place=place, example=example, why=reasons.get(place, num_asked))
        for place, example in enumerate(prepared.examples.examples)
        if place not in prompt.shown
    ]


class RenderAnswer(BaseModel):
    """What `POST /icl/render` answers."""

    id: str = Field(
        description="The request's id, also in the x-request-id header.",
        examples=["0d5c3f2be1c04a54a6f1c6ea8b9f7f10"],
    )
    template: TemplateUsed = Field(description="The template.")
    prompts: list[RenderedPrompt] = Field(description="In order of the inputs.", examples=[[]])


class IclGenerateAnswer(GenerateAnswer):
    """What `POST /icl/generate` answers without `stream`."""

    template: TemplateUsed = Field(description="The template.")
    prompts: list[PromptUsed] = Field(
        description="How each prompt was made, in order of the inputs.", examples=[[]]
    )


class TemplateVersionOut(BaseModel):
    """One version of a template."""

    version: str = Field(description="The digest of its content.", examples=[DIGEST])
    live: bool = Field(description="Whether the bare name means this one.", examples=[True])
    created_at: datetime = Field(
        description="When it was added.", examples=["2026-11-24T09:30:00Z"]
    )
    source: str = Field(description="`upload` or `template_dir`.", examples=["upload"])


class TemplateSummary(BaseModel):
    """A template: a name, and the versions that it has and had."""

    name: str = Field(description="Its name.", examples=["sentiment"])
    live: str | None = Field(
        description="The version that the bare name means; null: it is not served.",
        examples=[DIGEST],
    )
    description: str = Field(description="What it is for.", examples=["The sentiment of a review."])
    num_examples: int = Field(description="How many examples it has.", examples=[6])
    rejected: str | None = Field(
        description="Why what lies in the watched folder is not served, if it is not.",
        examples=[None],
    )
    versions: list[TemplateVersionOut] = Field(description="Newest first.", examples=[[]])

    @classmethod
    def of(cls, record: TemplateRecord) -> "TemplateSummary":
        return cls(**_summary(record))


class TemplateOut(TemplateSummary):
    """A template, and the content of its live version."""

    template: Template | None = Field(
        description="What is live; null: it is not served.", examples=[SHOWN_TEMPLATE]
    )

    @classmethod
    def of(cls, record: TemplateRecord) -> "TemplateOut":
        template = None if record.live is None else record.version(record.live).template
        return cls(**_summary(record), template=template)


def _summary(record: TemplateRecord) -> dict[str, Any]:
    live = None if record.live is None else record.version(record.live).template
    return {
        "name": record.name,
        "live": record.live,
        "description": "" if live is None else live.description,
        "num_examples": 0 if live is None else len(live.examples),
        "rejected": None if record.watched is None else record.watched.rejected,
        "versions": [
            TemplateVersionOut(
                version=version.digest,
                live=version.digest == record.live,
                created_at=version.created_at,
                source=version.source,
            )
            for version in record.history
        ],
    }


class TemplateList(BaseModel):
    """Every template, by name."""

    templates: list[TemplateSummary] = Field(description="By name.", examples=[[]])
