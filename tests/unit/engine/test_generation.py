"""Effective sampling controls, and the contradictions among them."""

from typing import Any

import pytest

from app.engine.generation import GenerationRequest, resolve_sampling, structure_of
from app.errors import InvalidRequest
from softserve.schema.controls import Sampling


def test_nothing_given_is_greedy() -> None:
    controls = resolve_sampling()
    assert controls.greedy
    assert controls == Sampling(
        max_new_tokens=128,
        min_new_tokens=0,
        temperature=0.0,
        top_k=None,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=None,
        stop=[],
        n=1,
        ignore_eos=False,
    )


@pytest.mark.parametrize("given", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"min_p": 0.0}])
def test_a_filter_turns_random_sampling_on(given: dict[str, Any]) -> None:
    controls = resolve_sampling(**given)
    assert controls.temperature == 1.0
    assert not controls.greedy


def test_a_given_temperature_stays() -> None:
    assert resolve_sampling(temperature=0.3, top_k=5).temperature == 0.3


def test_the_least_random_temperature() -> None:
    assert not resolve_sampling(temperature=0.01).greedy


def test_what_is_given_is_in_effect() -> None:
    controls = resolve_sampling(max_new_tokens=1, min_new_tokens=1, stop=["a", "b"], n=1)
    assert (controls.max_new_tokens, controls.min_new_tokens) == (1, 1)
    assert controls.stop == ["a", "b"]


GREEDY = "because the request is greedy: give a temperature above 0, or leave it out"
GO_ON = "would have a completion go on behind the end that"
WITHOUT_BEAMS = "has no effect without beams: give num_beams above 1, or leave it out"
RANDOM = (
    "is for random sampling, and num_beams asks for the most likely completions: leave one of the "
    "two out"
)
TAKES_NO = "a beam search takes no"
LEAVE_OUT = "leave it or num_beams out"
RAISE = "has no effect at temperature 0: raise the temperature, or leave one of the two out"


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"temperature": 0.0, "top_k": 5}, "top_k", f"top_k {RAISE}"),
        ({"temperature": 0.0, "top_p": 1.0}, "top_p", f"top_p {RAISE}"),
        ({"temperature": 0.0, "min_p": 0.0}, "min_p", f"min_p {RAISE}"),
        ({"temperature": 0.0, "min_p": 0.1, "top_p": 0.5}, "top_p", f"top_p {RAISE}"),
        ({"seed": 0}, "seed", f"seed has no effect, {GREEDY}"),
        ({"temperature": 0.0, "seed": 7}, "seed", f"seed has no effect, {GREEDY}"),
        ({"n": 2}, "n", f"n above 1 would repeat one text, {GREEDY}"),
        ({"temperature": 0.009}, "temperature",
         "temperature is 0.009: give 0 for greedy decoding, or at least 0.01"),
        ({"regex": "a", "choice": ["a"]}, "choice",
         "regex and choice each say what a completion is: leave one of them out"),
        ({"choice": ["a"], "min_new_tokens": 1}, "min_new_tokens",
         f"min_new_tokens {GO_ON} choice gives it: leave one of them out"),
        ({"json_schema": {}, "ignore_eos": True}, "ignore_eos",
         f"ignore_eos {GO_ON} json_schema gives it: leave one of them out"),
        ({"length_penalty": 1.0}, "length_penalty", f"length_penalty {WITHOUT_BEAMS}"),
        ({"num_beams": 1, "early_stopping": False}, "early_stopping",
         f"early_stopping {WITHOUT_BEAMS}"),
        ({"num_beams": 2, "top_p": 1.0}, "top_p", f"top_p {RANDOM}"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature", f"temperature {RANDOM}"),
        ({"num_beams": 2, "seed": 0}, "seed", f"seed {RANDOM}"),
        ({"num_beams": 2, "stop": ["a"]}, "stop", f"{TAKES_NO} stop: {LEAVE_OUT}"),
        ({"num_beams": 2, "presence_penalty": -1.0}, "presence_penalty",
         f"{TAKES_NO} presence_penalty: {LEAVE_OUT}"),
        ({"num_beams": 2, "json_schema": {}}, "json_schema",
         f"{TAKES_NO} json_schema: {LEAVE_OUT}"),
        ({"num_beams": 2, "repetition_penalty": 0.5}, "repetition_penalty",
         f"repetition_penalty is 0.5, and a beam search takes none below 1: {LEAVE_OUT}"),
        ({"num_beams": 2, "n": 3}, "n",
         "n is 3 and num_beams is 2: lower the first or raise the second"),
        ({"min_new_tokens": 1000, "max_new_tokens": 999}, "min_new_tokens",
         "min_new_tokens is 1,000 and max_new_tokens is 999: lower the first or raise the second"),
        ({"min_new_tokens": 129}, "min_new_tokens",
         "min_new_tokens is 129 and max_new_tokens is 128: lower the first or raise the second"),
    ],
)  # fmt: skip
def test_contradictions(given: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        resolve_sampling(**given)
    assert (raised.value.param, raised.value.message) == (param, message)


@pytest.mark.parametrize(
    ("given", "structure"),
    [
        ({}, None),
        ({"regex": '"a"'}, ("regex", '"a"')),
        ({"choice": ["a", "b"]}, ("choice", '["a", "b"]')),
        ({"json_schema": {}}, ("json_schema", "{}")),
        ({"json_schema": {"b": None, "a": "é"}}, ("json_schema", '{"b": null, "a": "\\u00e9"}')),
    ],
)
def test_the_structure_that_is_asked_for(
    given: dict[str, Any], structure: tuple[str, str] | None
) -> None:
    assert structure_of(resolve_sampling(**given)) == structure


def test_beams_are_not_greedy() -> None:
    controls = resolve_sampling(num_beams=4, n=4, early_stopping="never", repetition_penalty=1.5)
    assert (controls.greedy, controls.length_penalty) == (False, 1.0)
    assert resolve_sampling(num_beams=1).greedy


def test_sequences_are_prompts_times_beams() -> None:
    sampling = resolve_sampling(num_beams=4, n=3)
    assert GenerationRequest("id", 2, sampling).num_sequences == 8


def test_sequences_are_prompts_times_n() -> None:
    sampling = resolve_sampling(temperature=1.0, n=3)
    assert GenerationRequest("id", 2, sampling).num_sequences == 6
