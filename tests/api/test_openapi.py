"""The OpenAPI document: a description and an example for every field, and every endpoint."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from fastapi import Request

from app.access.caller import ANONYMOUS
from app.http.application import create_app
from app.http.requests import (
    few_shot_request,
    generation_request,
    inspection_request,
    prompt_sources,
)
from app.settings import Settings
from softserve.schema.generation import GenerateBody
from softserve.schema.icl import IclGenerateBody, RenderBody
from softserve.schema.inspection import InspectBody
from softserve.schema.prompts import PROMPT_FIELDS
from tests.api.support import serving
from tests.fake_engine import FakeEngine

Body = GenerateBody | InspectBody
CONVERTED: list[tuple[type[Body], Callable[..., Any]]] = [
    (GenerateBody, partial(generation_request, num_prompts=1)),
    (InspectBody, inspection_request),
]
REQUEST = Request({"type": "http", "headers": [], "state": {"request_id": "id"}})
DOCUMENT: dict[str, Any] = create_app(
    Settings(), FakeEngine(), lambda _: None, lambda: None
).openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
FIELDS = [
    pytest.param(field, id=f"{schema}.{name}")
    for schema in sorted(SCHEMAS)
    for name, field in SCHEMAS[schema]["properties"].items()
]


def _description(field: dict[str, Any]) -> str:
    """Its own, or that of the object that it holds, where the two would be the same."""
    described = field if "description" in field else SCHEMAS[field["$ref"].rpartition("/")[2]]
    description: str = described["description"]
    return description


def _has_example(field: dict[str, Any]) -> bool:
    """Of its own, or through the object that it holds, whose fields have theirs."""
    return "$ref" in field or len(field.get("examples", [])) > 0


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_a_description(field: dict[str, Any]) -> None:
    assert _description(field).endswith(".")


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_an_example(field: dict[str, Any]) -> None:
    assert _has_example(field)


@pytest.mark.parametrize(("body", "to_request"), CONVERTED)
def test_every_example_of_a_request_field_is_valid(
    body: type[Body], to_request: Callable[..., Any]
) -> None:
    needed: dict[str, dict[str, Any]] = {
        "system": {"use_chat_template": True},
        "seed": {"temperature": 1.0},
        "n": {"temperature": 1.0},
        "length_penalty": {"num_beams": 2},
        "early_stopping": {"num_beams": 2},
    }
    for name, field in body.model_fields.items():
        for example in field.examples or ():
            prompt = {} if name in PROMPT_FIELDS else {"prompt": "a"}
            valid = body.model_validate({**prompt, **needed.get(name, {}), name: example})
            to_request(valid, REQUEST)
            assert prompt_sources(valid)


@pytest.mark.parametrize(("body", "to_request"), CONVERTED)
def test_every_example_of_a_body_is_valid(body: type[Body], to_request: Callable[..., Any]) -> None:
    examples = SCHEMAS[body.__name__]["examples"]
    requests = [to_request(body.model_validate(example), REQUEST) for example in examples]
    assert [request.sampling.n for request in requests] == [1]


@pytest.mark.parametrize("body", [RenderBody, IclGenerateBody])
async def test_every_example_of_in_context_learning_is_valid(body: type[RenderBody]) -> None:
    async with serving() as served:
        few_shot = served.app.state.few_shot
        for example in SCHEMAS[body.__name__]["examples"]:
            asked = few_shot_request(body.model_validate(example), REQUEST)
            rendered = await few_shot.render(ANONYMOUS, asked)
            assert rendered.num_shots == 1


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def test_every_endpoint_is_there() -> None:
    assert {(path, method) for path, method, _ in _operations()} == {
        ("/generate", "post"),
        ("/inspect", "post"),
        ("/v1/completions", "post"),
        ("/v1/chat/completions", "post"),
        ("/v1/responses", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{model}", "get"),
        ("/tokenize", "post"),
        ("/detokenize", "post"),
        ("/adapters", "get"),
        ("/adapters/{name}", "get"),
        ("/adapters/{name}", "put"),
        ("/adapters/{name}", "delete"),
        ("/adapters/{name}/rollback", "post"),
        ("/adapters/{name}/split", "post"),
        ("/adapters/{name}/promote", "post"),
        ("/adapters/{name}/shadow", "post"),
        ("/adapters/{name}/shadow", "delete"),
        ("/icl/render", "post"),
        ("/icl/generate", "post"),
        ("/icl/templates", "get"),
        ("/icl/templates/{name}", "get"),
        ("/icl/templates/{name}", "put"),
        ("/icl/templates/{name}", "delete"),
        ("/icl/templates/{name}/rollback", "post"),
        ("/icl/templates/{name}/split", "post"),
        ("/icl/templates/{name}/promote", "post"),
        ("/icl/templates/{name}/shadow", "post"),
        ("/icl/templates/{name}/shadow", "delete"),
        ("/keys", "get"),
        ("/keys", "post"),
        ("/keys/{name}", "delete"),
        ("/usage", "get"),
        ("/drain", "post"),
        ("/info", "get"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
        ("/metrics", "get"),
    }


def test_every_endpoint_has_a_summary() -> None:
    assert all(operation["summary"] for _, _, operation in _operations())


def test_every_error_has_the_one_body() -> None:
    error_schemas = {
        (path, status, content["schema"]["$ref"])
        for path, _, operation in _operations()
        for status, response in operation["responses"].items()
        if status.startswith(("4", "5"))
        for content in response["content"].values()
    }
    assert {reference for _, _, reference in error_schemas} == {"#/components/schemas/ErrorAnswer"}
    assert {status for path, status, _ in error_schemas if path == "/generate"} == {
        "400",
        "401",
        "403",
        "413",
        "422",
        "503",
    }


def test_bodies_take_no_unknown_field() -> None:
    for name in (
        "GenerateBody",
        "InspectBody",
        "RenderBody",
        "IclGenerateBody",
        "Template",
        "CreateKey",
        "CompletionsBody",
        "ChatBody",
        "ResponsesBody",
    ):
        assert SCHEMAS[name]["additionalProperties"] is False
