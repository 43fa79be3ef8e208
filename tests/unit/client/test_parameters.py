"""The keyword arguments are the fields of the requests: all of them, each of its kind."""

from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel, TypeAdapter

from softserve.client import parameters
from softserve.schema.generation import GenerateBody
from softserve.schema.icl import IclGenerateBody, RenderBody
from softserve.schema.inspection import InspectBody
from softserve.schema.keys import CreateKey

# With the arguments that an operation has besides.
BODIES: list[tuple[type[BaseModel], Any, set[str]]] = [
    (GenerateBody, parameters.GenerateParameters, {"prompt", "stream"}),
    (InspectBody, parameters.InspectParameters, {"prompt"}),
    (RenderBody, parameters.RenderParameters, {"template", "inputs"}),
    (IclGenerateBody, parameters.IclParameters, {"template", "inputs", "stream"}),
    (CreateKey, parameters.KeyParameters, {"name"}),
]


@pytest.mark.parametrize(("body", "arguments", "besides"), BODIES)
def test_every_field_is_an_argument(
    body: type[BaseModel], arguments: Any, besides: set[str]
) -> None:
    assert set(get_type_hints(arguments)) == body.model_fields.keys() - besides


@pytest.mark.parametrize(("body", "arguments", "besides"), BODIES)
def test_every_argument_takes_what_the_field_takes(
    body: type[BaseModel], arguments: Any, besides: set[str]
) -> None:
    for name, hint in get_type_hints(arguments).items():
        for example in body.model_fields[name].examples or []:
            TypeAdapter(hint).validate_python(example, strict=True)
