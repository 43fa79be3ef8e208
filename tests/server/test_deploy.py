"""What is asked of a real server's metrics is shown: by the dashboard, alerts and routers."""

import re
from collections import defaultdict
from pathlib import Path

import httpx
import pytest

from tests import exposition
from tests.adapter_files import write_lora
from tests.deployment import DEPLOY, OF_EVERY_TARGET, OF_PROMETHEUS, labels_of, metrics_of, queries
from tests.server.peft_reference import SMOLLM2_MODULES
from tests.server.requests import add_adapter, generate

Labels = dict[str, set[str]]


@pytest.fixture
def shown(client: httpx.Client, tmp_path: Path) -> Labels:
    """The labels of every metric; those of what has not happened yet are not known."""
    add_adapter(client, "watched", write_lora(tmp_path / "watched", SMOLLM2_MODULES, rank=4))
    generate(client, prompt="Hi", max_new_tokens=2)
    generate(client, prompt="Hi", adapter="watched", max_new_tokens=2)
    client.delete("/adapters/watched")
    assert client.post("/generate", content=b" " * (2 << 20)).status_code == 413
    text = client.get("/metrics").text
    labels: Labels = defaultdict(set)
    for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE):
        labels[name] |= set()
    for sample in exposition.samples(text):
        labels[sample.name] |= sample.labels.keys()
    return labels


def test_what_is_asked_for_is_shown(shown: Labels) -> None:
    asked = {metric for query in queries() for metric in metrics_of(query)} - OF_PROMETHEUS
    assert asked - shown.keys() == set()


def test_labels_are_those_that_are_shown(shown: Labels) -> None:
    for query in queries():
        for metric in metrics_of(query) - OF_PROMETHEUS:
            # Without any, a counter has not begun to count.
            if shown[metric]:
                assert labels_of(query, metric) - OF_EVERY_TARGET <= shown[metric], query


def test_routers_are_told_of_metrics_that_are_shown(shown: Labels) -> None:
    """docs/kubernetes.md has them for an endpoint picker."""
    told = re.findall(
        r"^ +\w+Spec: (\S+)$", (DEPLOY.parent / "docs" / "kubernetes.md").read_text(), re.M
    )
    assert len(told) == 5
    assert set(told) - shown.keys() == set()
