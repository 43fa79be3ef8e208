"""What holds for every body: null stands for the default of a field, and the schema says so."""

from typing import Any

import pytest

from softserve.schema.adapters import AdapterSource
from softserve.schema.fields import Body
from softserve.schema.generation import GenerateBody
from softserve.schema.icl import IclGenerateBody, RenderBody
from softserve.schema.inspection import InspectBody
from softserve.schema.templates import Template
from softserve.schema.versions import RollbackBody

TEMPLATE = {"input_variables": ["x"], "example_format": "{{ x }}", "query_format": "{{ x }}"}
ICL = {"template": "a", "inputs": {"x": "b"}}
SMALLEST: list[tuple[type[Body], dict[str, Any]]] = [
    (GenerateBody, {}),
    (InspectBody, {}),
    (RenderBody, ICL),
    (IclGenerateBody, ICL),
    (Template, TEMPLATE),
    (AdapterSource, {"source": "a/b"}),
    (RollbackBody, {}),
]
FIELDS = [
    pytest.param(body, smallest, name, id=f"{body.__name__}.{name}")
    for body, smallest in SMALLEST
    for name in body.model_fields
]


@pytest.mark.parametrize(("body", "smallest", "name"), FIELDS)
def test_null_means_the_default(body: type[Body], smallest: dict[str, Any], name: str) -> None:
    if name in smallest:
        with pytest.raises(ValueError, match=name):
            body.model_validate(smallest | {name: None})
    else:
        assert body.model_validate(smallest | {name: None}) == body.model_validate(smallest)


@pytest.mark.parametrize(("body", "smallest", "name"), FIELDS)
def test_the_schema_says_so(body: type[Body], smallest: dict[str, Any], name: str) -> None:
    field = body.model_json_schema()["properties"][name]
    assert ({"type": "null"} in field.get("anyOf", [])) == (name not in smallest)


def test_null_is_no_field() -> None:
    with pytest.raises(ValueError, match="colour"):
        GenerateBody.model_validate({"prompt": "a", "colour": None})


def test_null_leaves_a_control_to_whatever_has_the_default() -> None:
    nulls = {"stop": None, "n": None, "ignore_eos": None, "temperature": None}
    assert GenerateBody.model_validate({"prompt": "a", **nulls}).sampling_given() == {}
