"""What Prometheus would read of GET /metrics."""

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Series = dict[tuple[str, ...], float]

# Of labels in a key; the text has them by alphabet.
FIRST = ("kind", "name", "version")


def samples(text: str) -> list[Sample]:
    return [each for family in text_string_to_metric_families(text) for each in family.samples]


def series(text: str, metric: str) -> Series:
    """The values of a metric by those of its labels: kind, name and version first."""
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels, key=_place)): sample.value
        for sample in samples(text)
        if sample.name == metric
    }


def _place(label: str) -> tuple[int, str]:
    return FIRST.index(label) if label in FIRST else len(FIRST), label
