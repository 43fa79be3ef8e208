"""Structures over HTTP: they reach the engine, which says whether it can keep to them.

(That it does is tested in tests/server/test_structures.py. Refusals: tests/bad_bodies.py.)
"""

from typing import Any

import pytest

from tests.api.support import Served, error_of, serving

# A null in it is a part of it.
SCHEMA = {"enum": ["a", None], "default": None}
TEMPLATE: dict[str, Any] = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
    "choice": ["good", "bad"],
}
ASKED = {"template": TEMPLATE, "inputs": {"text": "soup"}}


@pytest.mark.parametrize(
    ("structure", "text"),
    [
        ({"json_schema": SCHEMA}, '{"enum": ["a", null], "default": null}'),
        ({"regex": "[ab]+"}, "[ab]+"),
        ({"choice": ["yes", "no"]}, "yes"),
    ],
)
async def test_a_structure_reaches_the_engine_and_is_echoed(
    served: Served, structure: dict[str, Any], text: str
) -> None:
    answer = (await served.generate("hello", **structure)).json()
    assert answer["completions"][0]["text"] == text
    others = dict.fromkeys(("json_schema", "regex", "choice"))
    assert answer["sampling"] == answer["sampling"] | others | structure


async def test_what_the_engine_refuses_costs_nothing(served: Served) -> None:
    response = await served.generate(regex="(a")
    assert error_of(response) == (422, "invalid_request", "regex")
    assert served.admission.sequences_in_flight == 0
    assert await served.metric("softserve_completion_tokens_total") == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"regex": "a", "json_schema": {}}, "regex"),
        ({"regex": "a", "choice": ["a"]}, "choice"),
        ({"regex": "a", "min_new_tokens": 1}, "min_new_tokens"),
        ({"json_schema": {}, "ignore_eos": True}, "ignore_eos"),
    ],
)
async def test_contradictions(served: Served, body: dict[str, Any], param: str) -> None:
    assert error_of(await served.generate(**body)) == (422, "invalid_request", param)


async def test_the_limit_is_in_characters() -> None:
    async with serving(max_structure_length=8) as served:
        assert (await served.generate(regex="a" * 8)).status_code == 200
        assert (await served.generate(json_schema={"a": 1})).status_code == 200
        for over in ({"regex": "a" * 9}, {"choice": ["a", "bcd"]}, {"json_schema": {"a": 12}}):
            assert error_of(await served.generate(**over)) == (422, "invalid_request", *over)


async def test_a_template_has_a_structure_that_a_request_replaces(served: Served) -> None:
    async def completed(**given: Any) -> str:
        response = await served.client.post("/icl/generate", json=ASKED | given)
        assert response.status_code == 200, response.text
        text: str = response.json()["completions"][0]["text"]
        return text

    assert await completed() == "good"
    assert await completed(choice=["so so"]) == "so so"
    assert await completed(regex="[a]") == "[a]"


async def test_what_is_rendered_could_be_generated(served: Served) -> None:
    response = await served.client.post("/icl/render", json=ASKED | {"regex": "(a"})
    assert error_of(response) == (422, "invalid_request", "regex")
