"""From the domain to the wire: what is told of adapters, templates and prompts."""

from collections.abc import Sequence
from typing import Any

from app.adapters.registry import Adapters, AdapterStatus, VersionStatus
from app.serving.generation import FewShotPrompt, FewShotPrompts
from app.templates.labels import LabelScore
from app.templates.registry import ResolvedTemplate
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


def adapters_used(adapters: Adapters) -> dict[str, AdapterUsed]:
    """The fields of an answer that name the versions it was made with."""
    fields = {"adapter": adapters.lora, "soft_prompt": adapters.soft_prompt}
    return {
        field: AdapterUsed(name=used.name, version=used.version.digest)
        for field, used in fields.items()
        if used is not None
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


def template_used(template: ResolvedTemplate) -> TemplateUsed:
    return TemplateUsed(name=template.name, version=template.version)


def prompt_used(few_shot: FewShotPrompts, index: int) -> PromptUsed:
    return PromptUsed(**_prompt_fields(few_shot, few_shot.prompts[index]))


def rendered_prompts(few_shot: FewShotPrompts) -> list[RenderedPrompt]:
    return [
        RenderedPrompt(
            **_prompt_fields(few_shot, prompt),
            prompt=prompt.text,
            left_out=_left_out(few_shot, prompt),
        )
        for prompt in few_shot.prompts
    ]


def _prompt_fields(few_shot: FewShotPrompts, prompt: FewShotPrompt) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "prompt_index": prompt.prompt.index,
        "prompt_tokens": len(prompt.prompt.token_ids),
        "virtual_tokens": prompt.prompt.num_virtual_tokens,
        "shots": len(prompt.shown),
        "num_dropped": len(prompt.dropped),
        "examples": [
            ExampleUsed(place=index, example=few_shot.examples.examples[index])
            for index in prompt.shown
        ],
    }
    if prompt.labels:
        fields["classification"] = _labels_out(prompt.labels)
    return fields


def _left_out(few_shot: FewShotPrompts, prompt: FewShotPrompt) -> list[ExampleUsed]:
    reasons = dict.fromkeys(prompt.dropped, "it did not fit into the context window")
    num_asked = f"{few_shot.num_shots} were asked for"
    return [
        ExampleUsed(place=index, example=example, why=reasons.get(index, num_asked))
        for index, example in enumerate(few_shot.examples.examples)
        if index not in prompt.shown
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
