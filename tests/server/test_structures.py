"""Structures on the real engine: a completion is what they say, whatever else is asked."""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess, wait_until
from tests.server.requests import generate, stream, text_of
from tests.server.test_pause import is_paused, num_made, read_all, unread

QUESTION: dict[str, Any] = {
    "prompt": "Tell me the capital of France.",
    "use_chat_template": True,
    "max_new_tokens": 150,
}
CITY = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Paris", "Oslo"]},
        "population": {"type": "integer", "minimum": 1, "maximum": 99_999_999},
        "mayor": {"type": ["string", "null"], "maxLength": 20},
    },
    "required": ["city", "population", "mayor"],
    "additionalProperties": False,
}
DATE = "[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]"
STRUCTURES: list[dict[str, Any]] = [
    {"choice": ["Rome", "Paris"]},
    {"regex": DATE},
    {"json_schema": CITY},
]
EXPLODES = "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"


def check(structure: dict[str, Any], text: str) -> None:
    """Asserts that a text is what a structure says, by other means than the engine's."""
    match structure:
        case {"choice": choice}:
            assert text in choice
        case {"regex": regex}:
            assert re.fullmatch(regex, text)
        case _:
            city = json.loads(text)
            assert text.startswith('{"city": "')
            assert ', "population": ' in text
            assert list(city) == ["city", "population", "mayor"]
            assert city["city"] in {"Rome", "Paris", "Oslo"}
            assert 1 <= city["population"] <= 99_999_999
            assert city["mayor"] is None or len(city["mayor"]) <= 20


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_completion_is_what_its_structure_says(
    client: httpx.Client, structure: dict[str, Any]
) -> None:
    answer = generate(client, **QUESTION, **structure)

    check(structure, text_of(answer))
    assert answer["completions"][0]["finish_reason"] == "stop"
    assert answer["sampling"] == answer["sampling"] | structure


def test_the_likeliest_is_chosen(client: httpx.Client) -> None:
    for choice in (["Paris", "Rome"], ["Rome", "Paris"]):
        assert text_of(generate(client, **QUESTION, choice=choice)) == "Paris"
    # Its own answer, where that is allowed.
    sentence = text_of(generate(client, **QUESTION))
    assert sentence == "The capital of France is Paris."
    assert text_of(generate(client, **QUESTION, regex=".*")) == sentence
    country = "The [a-z]+ of (France|Spain)\\."
    assert text_of(generate(client, **QUESTION, regex=country)) == "The capital of France."


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_stream_has_the_same_text(client: httpx.Client, structure: dict[str, Any]) -> None:
    streamed = stream(client, **QUESTION, **structure)

    assert streamed.done
    assert streamed.text() == text_of(generate(client, **QUESTION, **structure))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_each_of_n_is_one_and_a_seed_repeats_them(
    client: httpx.Client, structure: dict[str, Any]
) -> None:
    body = QUESTION | structure | {"n": 4, "temperature": 1.0, "seed": 3}
    first, second = (generate(client, **body)["completions"] for _ in range(2))

    for completion in first:
        check(structure, completion["text"])
    assert first == second


def test_adapters(client: httpx.Client, intent_adapters: list[dict[str, str]]) -> None:
    body = {"prompt": "Message: I was charged twice.\nIntent:", "max_new_tokens": 150}
    for chosen in intent_adapters:
        asked = body | chosen
        assert text_of(generate(client, **asked, choice=[" billing", " delivery"])) == " billing"
        for structure in STRUCTURES:
            check(structure, text_of(generate(client, **asked, **structure)))


def test_a_prompt_of_several_steps(client: httpx.Client) -> None:
    """More than vLLM's 2,048 tokens in one step: nothing is masked before the last of them."""
    prompt = "one two three " * 800
    assert text_of(generate(client, prompt=prompt, choice=["yes", "no"])) in {"yes", "no"}


def test_beside_each_other_and_beside_none(client: httpx.Client) -> None:
    bodies = [QUESTION, *(QUESTION | structure for structure in STRUCTURES)] * 2
    alone = [text_of(generate(client, **body)) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: text_of(generate(client, **body)), bodies))

    assert together == alone


def test_what_ends_it_before_it_is_complete(client: httpx.Client) -> None:
    short = generate(client, **QUESTION | {"max_new_tokens": 3}, json_schema=CITY)
    stopped = generate(client, **QUESTION, json_schema=CITY, stop='"population')

    assert short["completions"][0]["finish_reason"] == "length"
    assert stopped["completions"][0]["finish_reason"] == "stop"
    whole = text_of(generate(client, **QUESTION, json_schema=CITY))
    assert text_of(stopped) == whole.partition('"population')[0]


def test_logprobs_are_of_the_tokens_that_are_allowed(client: httpx.Client) -> None:
    answer = generate(client, **QUESTION, choice=["Paris", "Rome"], logprobs=20)

    first, *others = answer["completions"][0]["logprobs"]
    texts = [token["token"] for token in first["top"]]
    assert "Paris" in texts
    assert all("Paris".startswith(text) or "Rome".startswith(text) for text in texts)
    assert sum(math.exp(token["logprob"]) for token in first["top"]) == pytest.approx(1.0)
    # Behind the whole text there is one token.
    assert len(others[-1]["top"]) == 1
    assert others[-1]["logprob"] == pytest.approx(0.0)


def test_a_slow_reader_gets_what_a_fast_one_gets(
    server: ServerProcess, client: httpx.Client
) -> None:
    body = QUESTION | {
        "regex": "[a-z ]{900}", "max_new_tokens": 100, "n": 8, "temperature": 1.0, "seed": 5,
        "logprobs": 20,
    }  # fmt: skip
    expected = stream(client, **body)
    before = num_made(client)

    with unread(server, body) as reader:
        wait_until(lambda: is_paused(client, before), seconds=60)
        streamed = read_all(reader)

    assert streamed.done
    for index in range(8):
        assert re.fullmatch("[a-z ]+", text := streamed.text(index=index))
        assert text == expected.text(index=index)


def test_a_template(client: httpx.Client) -> None:
    template = {
        "input_variables": ["country"],
        "query_format": "The capital of {{ country }} is",
        "example_format": "The capital of {{ country }} is {{ output }}",
        "choice": [" Rome", " Paris"],
    }
    answer = client.post(
        "/icl/generate", json={"template": template, "inputs": {"country": "France"}}
    ).json()
    assert text_of(answer) == " Paris"


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"enum": []}}, "anyOf is empty"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": EXPLODES}, ""),
    ],
)
def test_what_cannot_be_kept_to_is_refused_with_the_reason(
    client: httpx.Client, structure: dict[str, Any], reason: str
) -> None:
    response = client.post("/generate", json=QUESTION | structure)

    assert response.status_code == 422
    error = response.json()["error"]
    (param,) = structure
    assert error["param"] == param
    assert error["message"].startswith(f"{param} cannot be honoured: ")
    assert reason in error["message"]
    assert text_of(generate(client, **QUESTION)) == "The capital of France is Paris."
