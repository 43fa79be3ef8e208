"""From the domain to the wire: what is told of adapters, templates and prompts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from app.adapters.effect import warning_of
from app.adapters.registry import AdapterRegistry, Adapters, ResolvedAdapter
from app.adapters.version import AdapterVersion
from app.engine.effect import Effect
from app.serving.generation import FewShotPrompt, FewShotPrompts
from app.templates.labels import LabelScore
from app.templates.registry import ResolvedTemplate, TemplateRegistry
from app.versions.names import Names, Visible
from app.versions.origin.following import Follower, Served
from app.versions.records import Entry, Record
from app.versions.splits import Split
from softserve.schema.adapters import AdapterOut, EffectOut, OriginOut, VersionOut
from softserve.schema.generation import AdapterUsed
from softserve.schema.icl import (
    ExampleUsed,
    LabelOut,
    LabelsOut,
    PromptUsed,
    RenderedPrompt,
    TemplateUsed,
)
from softserve.schema.templates import Template, TemplateOut, TemplateSummary
from softserve.schema.versions import ReplicaOut, ShadowOut, ShadowResults, SplitOut


def adapters_used(adapters: Adapters) -> dict[str, AdapterUsed]:
    """The fields of an answer that name the versions it was made with."""
    fields = {"adapter": adapters.lora, "soft_prompt": adapters.soft_prompt}
    return {field: _adapter_used(used) for field, used in fields.items() if used is not None}


def _adapter_used(used: ResolvedAdapter) -> AdapterUsed:
    # Only what is set is sent.
    task = {} if used.task is None else {"task": used.task}
    return AdapterUsed(name=used.name, version=used.version.digest, **task)


def adapter_out(
    adapters: AdapterRegistry, record: Record, replicas: list[ReplicaOut] | None = None
) -> AdapterOut:
    num_requests = adapters.num_requests(record.name)
    return AdapterOut(
        **_name_fields(adapters.names, record, replicas),
        kind=record.kind,
        requests=num_requests.total(),
        versions=[
            _version_out(adapters, record, entry, version, num_requests[entry.digest])
            for entry in record.history
            if (version := adapters.names.version(entry.digest)) is not None
        ],
    )


def _version_out(
    adapters: AdapterRegistry,
    record: Record,
    entry: Entry,
    version: AdapterVersion,
    num_requests: int,
) -> VersionOut:
    return VersionOut(
        **_version_fields(record, entry),
        **version.facts,
        loaded=adapters.is_loaded(entry.digest),
        effect=_effect_out(entry.effect),
        warning=warning_of(entry.effect),
        requests=num_requests,
    )


def _effect_out(effect: Effect | None) -> EffectOut | None:
    if effect is None:
        return None
    return EffectOut(kl_divergence=effect.kl_divergence, changed=effect.changed)


def origin_out(follower: Follower, adapters: AdapterRegistry, visible: Visible) -> OriginOut:
    behind = follower.behind_of(adapters.names)
    return OriginOut(
        replica=follower.replicas.id,
        generation=follower.generation,
        reachable=follower.origin.is_reachable,
        publishes=follower.publishes,
        behind={name: why for name, why in behind.items() if visible(name)},
    )


def replica_out(served: Served) -> ReplicaOut:
    replica = served.replica
    return ReplicaOut(
        id=replica.id, host=replica.beat.host, serves=served.is_served, why=served.why or None
    )


def template_summary(templates: TemplateRegistry, record: Record) -> TemplateSummary:
    live = _live_template(templates, record)
    return TemplateSummary(**_template_fields(templates, record, live))


def template_out(
    templates: TemplateRegistry, record: Record, replicas: list[ReplicaOut] | None = None
) -> TemplateOut:
    live = _live_template(templates, record)
    return TemplateOut(**_template_fields(templates, record, live, replicas), template=live)


def _live_template(templates: TemplateRegistry, record: Record) -> Template | None:
    return None if record.live is None else templates.names.store.version(record.live)


def _template_fields(
    templates: TemplateRegistry,
    record: Record,
    live: Template | None,
    replicas: list[ReplicaOut] | None = None,
) -> dict[str, Any]:
    return _name_fields(templates.names, record, replicas) | {
        "description": "" if live is None else live.description,
        "num_examples": 0 if live is None else len(live.examples),
        "versions": [_version_fields(record, entry) for entry in record.history],
    }


def _name_fields(
    names: Names[Any], record: Record, replicas: list[ReplicaOut] | None
) -> dict[str, Any]:
    # Only what was asked for is sent.
    told = {} if replicas is None else {"replicas": replicas}
    return told | {
        "name": record.name,
        "live": record.live,
        "rejected": record.rejected,
        "split": _split_out(record.split),
        "shadow": _shadow_out(names, record),
    }


def _split_out(split: Split | None) -> SplitOut | None:
    return None if split is None else SplitOut(versions=dict(split.weights), sticky=split.sticky)


def _shadow_out(names: Names[Any], record: Record) -> ShadowOut | None:
    if (shadow := record.shadow) is None:
        return None
    tally = names.tally(record.name)
    results = asdict(tally) | {"agreement": tally.mean_agreement}
    return ShadowOut(
        version=shadow.digest,
        percent=shadow.percent,
        since=shadow.since,
        results=ShadowResults(**results),
    )


def _version_fields(record: Record, entry: Entry) -> dict[str, Any]:
    return {
        "version": entry.digest,
        "live": entry.digest == record.live,
        "created_at": entry.created_at,
        "source": entry.source,
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
        "prompt_tokens": prompt.prompt.num_tokens,
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
