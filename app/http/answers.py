"""From the domain to the wire: what is told of adapters, templates and prompts."""

from collections.abc import Sequence
from typing import Any

from app.adapters.registry import AdapterStatus, VersionStatus
from app.engine.generation import GenerationChunk, GenerationRequest
from app.engine.protocol import Prompt
from app.serving.few_shot import FewShotPrompt, Preparation
from app.serving.service import InspectionRequest
from app.templates.labels import LabelScore
from app.templates.store import TemplateRecord
from softserve.schema.adapters import AdapterOut, VersionOut
from softserve.schema.generation import AdapterUsed
from softserve.schema.icl import (
    ExampleUsed,
    LabelOut,
    LabelsOut,
    PromptUsed,
    RenderedPrompt,
    TemplateUsed,
)
from softserve.schema.templates import TemplateOut, TemplateSummary, TemplateVersionOut


def adapters_used(
    asked: GenerationRequest | InspectionRequest, ran: GenerationChunk | Prompt
) -> dict[str, AdapterUsed]:
    """The fields of an answer that name the versions it was made with."""
    fields = {
        "adapter": (asked.adapter, ran.lora),
        "soft_prompt": (asked.soft_prompt, ran.soft_prompt),
    }
    return {
        field: AdapterUsed(name=reference.partition("@")[0], version=digest)
        for field, (reference, digest) in fields.items()
        if reference is not None and digest is not None
    }


def adapter_out(status: AdapterStatus) -> AdapterOut:
    return AdapterOut(
        name=status.name,
        kind=status.kind,
        live=status.live,
        rejected=status.rejected,
        requests=status.requests,
        versions=[_version_out(version, status.live) for version in status.versions],
    )


def _version_out(status: VersionStatus, live: str | None) -> VersionOut:
    version = status.version
    return VersionOut(
        version=version.digest,
        live=version.digest == live,
        loaded=status.loaded,
        created_at=status.created_at,
        source=status.source,
        size_bytes=version.size_bytes,
        base_model=version.base_model,
        rank=version.rank,
        target_modules=list(version.target_modules),
        virtual_tokens=version.num_virtual_tokens,
        requests=status.requests,
    )


def template_summary(record: TemplateRecord) -> TemplateSummary:
    return TemplateSummary(**_summary(record))


def template_out(record: TemplateRecord) -> TemplateOut:
    template = None if record.live is None else record.version(record.live).template
    return TemplateOut(**_summary(record), template=template)


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


def template_used(prepared: Preparation) -> TemplateUsed:
    return TemplateUsed(name=prepared.template.name, version=prepared.template.version)


def prompt_used(prepared: Preparation, prompt: FewShotPrompt) -> PromptUsed:
    return PromptUsed(**_prompt_fields(prepared, prompt))


def rendered_prompt(prepared: Preparation, prompt: FewShotPrompt) -> RenderedPrompt:
    return RenderedPrompt(
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
        fields["classification"] = _labels_out(prompt.labels)
    return fields


def _left_out(prepared: Preparation, prompt: FewShotPrompt) -> list[ExampleUsed]:
    reasons = dict.fromkeys(prompt.dropped, "it did not fit into the context window")
    num_asked = f"{prepared.num_shots} were asked for"
    return [
        ExampleUsed(place=place, example=example, why=reasons.get(place, num_asked))
        for place, example in enumerate(prepared.examples.examples)
        if place not in prompt.shown
    ]


def _labels_out(scores: Sequence[LabelScore]) -> LabelsOut:
    best = max(scores, key=lambda score: score.probability)
    return LabelsOut(
        best=best.label,
        labels=[
            LabelOut(label=each.label, probability=each.probability, logprob=each.logprob)
            for each in scores
        ],
    )
