"""What deploy/ asks of Prometheus: every query of the dashboard and of the alert rules."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "softserve.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"

# Prometheus' own: it adds them to what it scrapes.
OF_EVERY_TARGET = {"job", "instance"}
OF_PROMETHEUS = {"up"}

METRIC = re.compile(r"\b(?:softserve_|vllm:|process_|up\b)[a-z0-9_:]*")
MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
SELECTOR = re.compile(r"(\b(?:softserve_|vllm:|process_|up\b)[a-z0-9_:]*)\{([^}]*)\}")
GROUPING = re.compile(r"\bby \(([^)]*)\)")


def alert_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    for rule in alert_rules():
        yield rule["expr"]


def metrics_of(query: str) -> set[str]:
    return set(METRIC.findall(query))


def matchers_of(query: str) -> set[tuple[str, str, str]]:
    """Metric, label and value, as they are selected."""
    return {
        (metric, label, value)
        for metric, matchers in SELECTOR.findall(query)
        for label, value in MATCHER.findall(matchers)
    }


def labels_of(query: str, metric: str) -> set[str]:
    """Those that a metric is selected by, and that anything in the query is grouped by."""
    grouped = {label.strip() for labels in GROUPING.findall(query) for label in labels.split(",")}
    return {label for name, label, _ in matchers_of(query) if name == metric} | grouped
