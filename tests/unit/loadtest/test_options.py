"""What can be chosen on the command line of a load test."""

from itertools import islice

import pytest

from loadtest.figures.objective import Objective
from loadtest.options import Range
from loadtest.users.answers import Answer
from loadtest.users.mix import Mix

NAMES = ["a", "b", "c"]


def answer(*texts_at: float, e2e: float = 1.0, completion_tokens: int = 3) -> Answer:
    return Answer("User", "lora", 100.0, "completed", list(texts_at), e2e, 5, completion_tokens)


@pytest.mark.parametrize(
    ("text", "expected"), [("16:64", Range(16, 64)), ("7", Range(7, 7)), ("3:3", Range(3, 3))]
)
def test_a_range_is_two_numbers_or_one(text: str, expected: Range) -> None:
    assert Range.parse(text) == expected


@pytest.mark.parametrize("text", ["", "0", "64:16", "1:2:3", "-1", "one"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no range|is neither"):
        Range.parse(text)


def test_zipf_gives_the_kth_its_share() -> None:
    assert Mix.parse("zipf:1").weights_of(4) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert Mix.parse("zipf:2").weights_of(3) == pytest.approx([1, 1 / 4, 1 / 9])
    assert Mix.parse("zipf:0").weights_of(2) == [1, 1]


def test_weights_beyond_those_given_are_0() -> None:
    assert Mix.parse("weights:5,3").weights_of(3) == [5, 3, 0]
    assert Mix.parse("weights:5,3,1").weights_of(2) == [5, 3]


def test_who_has_no_weight_is_not_asked_for() -> None:
    assert set(islice(Mix.parse("weights:0,1").choices(NAMES), 50)) == {"b"}


def test_round_robin_takes_turns() -> None:
    assert list(islice(Mix.parse("round-robin").choices(NAMES), 4)) == ["a", "b", "c", "a"]


@pytest.mark.parametrize("text", ["", "zipf", "zipf:x", "weights:", "weights:0,0", "weights:-1,2"])
def test_what_is_no_mix(text: str) -> None:
    with pytest.raises(ValueError, match="is no mix"):
        Mix.parse(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ttft=500ms", True),
        ("ttft=499ms", False),
        # The longest pause counts, not the mean.
        ("itl=250ms", True),
        ("itl=249ms", False),
        # (1.0 - 0.5) / (3 - 1)
        ("tpot=250ms", True),
        ("tpot=249ms", False),
        ("e2e=1s", True),
        ("e2e=999ms", False),
        ("ttft=500ms,e2e=999ms", False),
    ],
)
def test_an_objective_is_kept_to_the_last_limit(text: str, kept: bool) -> None:
    assert Objective.parse(text).is_kept_by(answer(0.5, 0.625, 0.875)) is kept


def test_an_answer_that_came_at_once_has_no_first_token() -> None:
    assert Objective.parse("ttft=1ms,itl=1ms,tpot=1ms,e2e=1s").is_kept_by(answer())


@pytest.mark.parametrize("text", ["", "ttft", "ttft=5", "ttft=5m", "speed=5s", "ttft=-1s"])
def test_what_is_no_objective(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        Objective.parse(text)
