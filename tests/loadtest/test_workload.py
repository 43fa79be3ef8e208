"""The loads of `make bench`: how long, how fast, and the same again."""

import math

import pytest

from loadtest.workload import Load, Workload


def tokenize(text: str) -> list[int]:
    """A token for each word."""
    return [len(word) for word in text.split()]


@pytest.fixture
def workload() -> Workload:
    return Workload(tokenize, prompt_tokens=(3, 9), new_tokens=(20, 40))


def num_new_tokens(load: Load) -> int:
    return sum(request.num_new_tokens for request in load.requests)


def test_lengths_are_what_a_request_says(workload: Workload) -> None:
    for request in workload.lasting(10, 4, peak_tokens_per_second=600).requests:
        assert 3 <= request.num_prompt_tokens <= 9
        assert 20 <= request.num_new_tokens <= 40
        assert len(tokenize(request.prompt)) == request.num_prompt_tokens


def test_it_lasts_as_long_as_asked_at_the_peak(workload: Workload) -> None:
    load = workload.lasting(10, 4, peak_tokens_per_second=600)
    without_the_last = num_new_tokens(load) - load.requests[-1].num_new_tokens
    assert without_the_last < 10 * 600 <= num_new_tokens(load)


def test_requests_arrive_four_times_as_fast_as_they_are_answered(workload: Workload) -> None:
    load = workload.lasting(10, 4, peak_tokens_per_second=600)
    seconds_of_answers = num_new_tokens(load) / 600
    seconds_of_arrivals = len(load.requests) / load.requests_per_second
    assert seconds_of_answers / seconds_of_arrivals == pytest.approx(4)


def test_the_same_load_comes_again(workload: Workload) -> None:
    load = workload.lasting(1, 4, peak_tokens_per_second=600)
    assert workload.lasting(1, 4, peak_tokens_per_second=600) == load
    assert workload.lasting(1, 8, peak_tokens_per_second=600).requests != load.requests


def test_a_warm_up_keeps_every_client_busy_twice(workload: Workload) -> None:
    assert len(workload.warm_up(1).requests) == 8
    load = workload.warm_up(128)
    assert (len(load.requests), load.requests_per_second) == (256, math.inf)
