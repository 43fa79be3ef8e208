"""What the metrics show of the server's parts, read from them at a scrape."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from app.access.door import Door
from app.adapters.registry import AdapterRegistry
from app.errors import EngineDied, EngineStalled, EngineStarting, ServerDraining, Unavailable
from app.serving.admission import Admission
from app.telemetry.metrics import Metrics, Series
from app.telemetry.usage import Kind, Name
from app.templates.registry import TemplateRegistry
from app.versions.names import Names
from app.versions.origin.following import Follower
from app.versions.shadows import ShadowTally

STATES: dict[type[Unavailable] | None, str] = {
    EngineStarting: "starting",
    None: "open",
    EngineStalled: "stalled",
    ServerDraining: "draining",
    EngineDied: "dead",
}
# By the kind of a record; templates have none.
KINDS: dict[str | None, Kind] = {"lora": "adapter", "soft_prompt": "soft_prompt", None: "template"}


def observe(
    metrics: Metrics,
    door: Door,
    admission: Admission,
    adapters: AdapterRegistry,
    templates: TemplateRegistry,
    max_loras: int,
) -> None:
    """Serve the metrics of these parts."""
    metrics.show_gauges(
        "softserve_state",
        "1 for the state that the server is in (starting, open, stalled, draining, dead), else 0.",
        ["state"],
        lambda: _states(admission),
    )
    metrics.show_gauge(
        "softserve_sequences_in_flight",
        "Completions being generated or waiting.",
        lambda: admission.sequences_in_flight,
    )
    metrics.show_gauge(
        "softserve_sequences_running",
        "Completions that have a place at the engine.",
        lambda: admission.places.num_held,
    )
    metrics.show_gauge(
        "softserve_sequences_waiting",
        "Completions that wait for their turn at the engine.",
        lambda: admission.places.num_waiting,
    )
    metrics.show_gauge(
        "softserve_waiting_prompt_tokens",
        "Tokens of the prompts that wait for their turn, estimated until they are tokenized.",
        lambda: admission.num_waiting_prompt_tokens,
    )
    metrics.show_gauge(
        "softserve_adapters_live",
        "Adapters with a live version.",
        lambda: len(adapters.names.live),
    )
    metrics.show_gauge(
        "softserve_adapters_loaded",
        "Versions of adapters that the engine holds in memory.",
        lambda: adapters.num_loaded,
    )
    metrics.show_gauges(
        "softserve_adapter_loaded",
        "1 for each version of an adapter that the engine holds in memory.",
        Name._fields,
        lambda: [(name, 1.0) for name in _loaded(adapters)],
    )
    metrics.show_gauges(
        "softserve_names_rejected",
        "Names whose newest files were refused, by registry (adapters, templates).",
        ["registry"],
        lambda: [
            (["adapters"], _num_rejected(adapters.names)),
            (["templates"], _num_rejected(templates.names)),
        ],
    )
    metrics.show_counters(
        "softserve_swaps",
        "Changes of a live version since the server started, by registry (adapters, templates).",
        ["registry"],
        lambda: [
            (["adapters"], adapters.names.num_swaps),
            (["templates"], templates.names.num_swaps),
        ],
    )
    _show_shadows(metrics, adapters.names, templates.names)
    if max_loras:
        _show_lora_requests_info(metrics, max_loras)
    metrics.usage.is_known |= {
        "adapter": lambda name: _has(adapters.names, name),
        "soft_prompt": lambda name: _has(adapters.names, name),
        "template": lambda name: _has(templates.names, name),
        "key": lambda name: door.knows(name.name),
    }


def observe_origin(metrics: Metrics, follower: Follower) -> None:
    """Serve the metrics of a replica that follows an origin."""
    metrics.show_gauge(
        "softserve_origin_generation",
        "The generation of the origin's catalog that this replica follows.",
        lambda: follower.generation,
    )
    metrics.show_gauge(
        "softserve_origin_reachable",
        "1 if the origin answered when it was asked last, else 0.",
        lambda: follower.origin.is_reachable,
    )
    metrics.show_gauge(
        "softserve_origin_names_behind",
        "Names that this replica does not serve as the origin has them.",
        lambda: len(follower.behind),
    )
    metrics.show_gauge(
        "softserve_origin_replicas",
        "Replicas that are alive, as far as this one knows.",
        lambda: follower.replicas.num_alive,
    )
    metrics.show_gauge(
        "softserve_origin_publishes",
        "1 for the replica whose watched folders are those of all, else 0.",
        lambda: follower.publishes,
    )


def _show_shadows(metrics: Metrics, *families: Names[Any]) -> None:
    """What came of the copies that run on shadows. The series of a shadow end with it."""
    labels = Name._fields

    def shown(values: Callable[[ShadowTally], Mapping[str, float]]) -> Callable[[], Series]:
        return lambda: [
            ((*name, label), value)
            for name, tally in _shadows(families)
            for label, value in values(tally).items()
        ]

    metrics.show_counters(
        "softserve_shadow_requests",
        "Copies of requests on a shadow, by outcome (completed, failed, skipped).",
        [*labels, "outcome"],
        shown(
            lambda tally: {
                "completed": tally.completed,
                "failed": tally.failed,
                "skipped": tally.skipped,
            }
        ),
    )
    metrics.show_counters(
        "softserve_shadow_seconds",
        "Time in the engine of completed copies (shadow) and of their live answers (live).",
        [*labels, "side"],
        shown(lambda tally: {"live": tally.live_seconds, "shadow": tally.shadow_seconds}),
    )
    metrics.show_counters(
        "softserve_shadow_tokens",
        "Completion tokens of completed copies (shadow) and of their live answers (live).",
        [*labels, "side"],
        shown(lambda tally: {"live": tally.live_tokens, "shadow": tally.shadow_tokens}),
    )
    metrics.show_counters(
        "softserve_shadow_compared",
        "Greedy completions of copies, by how their text compares to the live one (equal, "
        "different).",
        [*labels, "text"],
        shown(lambda tally: {"equal": tally.equal, "different": tally.compared - tally.equal}),
    )
    metrics.show_gauges(
        "softserve_shadow_agreement_ratio",
        "How far the compared completions agree, on average: the tokens before the first that "
        "differs, of those of the longer one.",
        labels,
        lambda: [
            (name, tally.mean_agreement)
            for name, tally in _shadows(families)
            if tally.mean_agreement is not None
        ],
    )


def _shadows(families: Iterable[Names[Any]]) -> Iterator[tuple[Name, ShadowTally]]:
    for names in families:
        for record in names.list():
            if record.shadow is not None:
                kind = KINDS[record.kind]
                name = Name.of_version(kind, record.name, record.shadow.digest)
                yield name, names.tally(record.name)


def _show_lora_requests_info(metrics: Metrics, max_loras: int) -> None:
    """The metric that routers read to send a request where its adapter is in use.

    vLLM's own has the digests for names, and a series for every combination that ever was.
    """

    def series() -> Series:
        running = metrics.usage.in_flight("adapter", has_tokens=True)
        waiting = metrics.usage.in_flight("adapter", has_tokens=False) - running
        labels = [str(max_loras), ",".join(sorted(waiting)), ",".join(sorted(running))]
        return [(labels, time.time())]

    metrics.show_gauges(
        "vllm:lora_requests_info",
        "The names of the LoRAs in use; the value is the time of the scrape.",
        ["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        series,
    )


def _states(admission: Admission) -> Series:
    refusal = admission.refusal
    current = STATES.get(None if refusal is None else type(refusal))
    return [([state], float(state == current)) for state in STATES.values()]


def _loaded(adapters: AdapterRegistry) -> Iterator[Name]:
    for record in adapters.names.list():
        kind: Kind = "soft_prompt" if record.kind == "soft_prompt" else "adapter"
        for digest in record.digests:
            if adapters.is_loaded(digest):
                yield Name.of_version(kind, record.name, digest)


def _has(names: Names[Any], name: Name) -> bool:
    """Whether the name is there and has this version."""
    record = names.store.record(name.name)
    return record is not None and any(digest.startswith(name.version) for digest in record.digests)


def _num_rejected(names: Names[Any]) -> int:
    return sum(record.rejected is not None for record in names.list())
