"""deploy/: what Prometheus' own tool says of it, and what it takes for granted of the server.

tests/server/test_deploy.py compares its queries with a real server's /metrics.
"""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from app.http.errors import HTTP_TYPES, STATUSES
from tests.deployment import DEPLOY, alert_rules, matchers_of, panels, queries

ROOT = DEPLOY.parent
PROMETHEUS = DEPLOY / "prometheus"
NEITHER_HERE_NOR_APT = 3
# What Grafana puts into a query.
VARIABLES = {"$instance": ".*", "$kind": "adapter", "$__rate_interval": "1m"}


@pytest.fixture(scope="session")
def promtool() -> Path:
    script = ROOT / "scripts" / "promtool.sh"
    found = subprocess.run([script], capture_output=True, text=True, check=False)
    if found.returncode == NEITHER_HERE_NOR_APT:
        pytest.skip(f"nothing has checked deploy/prometheus: {found.stderr}")
    assert found.returncode == 0, found.stderr
    return Path(found.stdout.strip())


def check(promtool: Path, *arguments: str | Path) -> None:
    done = subprocess.run(
        [promtool, *arguments], capture_output=True, text=True, check=False, cwd=PROMETHEUS
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
    ],
)
def test_prometheus_takes_it(promtool: Path, arguments: tuple[str, ...]) -> None:
    check(promtool, *arguments)


def filled_in(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def test_prometheus_understands_every_query_of_the_dashboard(
    promtool: Path, tmp_path: Path
) -> None:
    rules = [
        {"record": f"query:{number}", "expr": filled_in(query)}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    check(promtool, "check", "rules", file)


def test_no_other_variable_is_in_a_query() -> None:
    used = {name for query in queries() for name in re.findall(r"\$\w+", query)}
    assert used == VARIABLES.keys()


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "action"}


def test_every_panel_has_a_query() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels()) > 20
    assert all(panel["title"] and panel["targets"] for panel in panels())


def test_reasons_are_types_of_errors() -> None:
    types = {name for _, name in STATUSES.values()} | set(HTTP_TYPES.values())
    reasons = {
        value for query in queries() for _, label, value in matchers_of(query) if label == "reason"
    }
    assert reasons
    assert reasons <= types


def test_compose_mounts_what_is_there() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert "./deploy/grafana/softserve.json" in mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == []
