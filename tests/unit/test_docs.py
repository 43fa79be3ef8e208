"""The documentation that can go stale without anybody noticing, checked."""

import json
import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from app.http.application import create_app
from app.http.errors import STATUSES
from app.settings import Settings
from softserve.schema.controls import CONTROLS, Sampling
from softserve.schema.generation import GenerateBody
from softserve.schema.templates import Template
from tests.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]
MAX_PROSE_LENGTH = 130
DOCUMENTS = [
    str(file.relative_to(ROOT))
    for pattern in ("README.md", "CHANGELOG.md", "docs/*.md", "*/README.md")
    for file in sorted(ROOT.glob(pattern))
]


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


def control_row(name: str) -> str:
    """A control of `Sampling` with its default, which a body leaves open; or another field."""
    fields = Sampling.model_fields if name in CONTROLS else GenerateBody.model_fields
    field = fields[name]
    has_default = not field.is_required() and field.default is not None
    default = f"`{json.dumps(field.default)}`" if has_default else ""
    return f"| `{name}` | {default} | {field.description} |"


@pytest.mark.parametrize("name", GenerateBody.model_fields)
def test_every_control_is_in_the_readme(name: str) -> None:
    assert control_row(name) in lines_of("README.md")


def test_the_readme_has_no_other_control() -> None:
    rows = [line for line in lines_of("README.md") if line.startswith("| `")]
    assert len(rows) == len(GenerateBody.model_fields)


def prose_of(document: str) -> list[str]:
    """The lines of a document outside of code and tables."""
    parts = "\n".join(lines_of(document)).split("```")
    lines = "\n".join(parts[::2]).splitlines()
    return [line for line in lines if not line.startswith("|")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_line_of_prose_can_be_read(document: str) -> None:
    too_long = [line for line in prose_of(document) if len(line) > MAX_PROSE_LENGTH]
    assert too_long == []


@pytest.mark.parametrize("name", sorted(Template.model_fields.keys() - CONTROLS))
def test_every_field_of_a_template_is_documented(name: str) -> None:
    rows = [line for line in lines_of("docs/icl.md") if line.startswith("| `")]
    assert any(f"`{name}`" in row for row in rows)


@pytest.mark.parametrize(("status", "type"), STATUSES.values())
def test_every_error_is_documented(status: int, type: str) -> None:
    rows = [row.split("|")[1:3] for row in lines_of("docs/api.md") if row.startswith("| ")]
    assert any(str(status) in row[0] and f"`{type}`" in row[1] for row in rows)


def test_every_metric_is_documented() -> None:
    documented = (ROOT / "docs/operations.md").read_text()
    app = create_app(Settings(), FakeEngine(), print, print)
    metrics = app.state.service.metrics
    families = [*metrics.registry.collect(), *metrics.shown.collect()]

    assert families
    for family in families:
        assert family.name in documented


def test_what_the_architecture_names_is_there() -> None:
    text = "\n".join(lines_of("docs/architecture.md"))
    named = re.findall(r"`((?:app|softserve|tests|docs)/[\w/.]*|\w+\.(?:md|toml))`", text)

    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
