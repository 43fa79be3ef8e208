"""The documentation that can go stale without anybody noticing, checked."""

from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from app.http.errors import STATUSES
from app.settings import Settings
from app.telemetry.metrics import Metrics
from softserve.schema.controls import CONTROLS
from softserve.schema.generation import GenerateBody
from softserve.schema.templates import Template

ROOT = Path(__file__).parents[2]


def lines_of(document: str) -> list[str]:
    return (ROOT / document).read_text().splitlines()


def settings_row(name: str, field: FieldInfo) -> str:
    default = "" if field.default_factory or not field.default else f"`{field.default}`"
    flag = name.replace("_", "-")
    return f"| `--{flag}` | {default} | {field.description} |"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    row = settings_row(name, Settings.model_fields[name])

    assert row in lines_of("docs/settings.md")


@pytest.mark.parametrize("name", GenerateBody.model_fields)
def test_every_control_is_in_the_readme(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", Template.model_fields.keys() - CONTROLS)
def test_every_field_of_a_template_is_documented(name: str) -> None:
    rows = [line for line in lines_of("docs/icl.md") if line.startswith("| `")]
    assert any(f"`{name}`" in row for row in rows)


@pytest.mark.parametrize(("status", "type"), STATUSES.values())
def test_every_error_is_documented(status: int, type: str) -> None:
    rows = [row.split("|")[1:3] for row in lines_of("docs/api.md") if row.startswith("| ")]
    assert any(str(status) in row[0] and f"`{type}`" in row[1] for row in rows)


def test_every_metric_is_documented() -> None:
    documented = (ROOT / "docs/operations.md").read_text()
    families = list(Metrics().registry.collect())

    assert families
    for family in families:
        assert family.name in documented
