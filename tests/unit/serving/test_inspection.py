"""What the controls do to a distribution, against plain independent arithmetic."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.engine.generation import resolve_sampling
from app.serving.inspection import Distribution, inspect_distribution

PLAIN = settings(deadline=None, derandomize=True, database=None, max_examples=200)
SCORES = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40)
TEMPERATURES = st.floats(0.05, 2.0)


def _inspect(scores: list[float], **controls: Any) -> Distribution:
    sampling = resolve_sampling(**controls)
    return inspect_distribution(np.asarray(scores, dtype=np.float32), sampling, len(scores))


def _logs(*probabilities: float) -> list[float]:
    return [math.log(probability) for probability in probabilities]


def _finals(distribution: Distribution) -> NDArray[np.float64]:
    by_id = {fate.token_id: fate.final for fate in distribution.tokens}
    return np.array([by_id[token_id] for token_id in sorted(by_id)])


def _plain_softmax(scores: list[float], temperature: float = 1.0) -> list[float]:
    """Written apart from the server's, on Python floats."""
    exact = [float(np.float32(score)) / temperature for score in scores]
    weights = [math.exp(score - max(exact)) for score in exact]
    return [weight / math.fsum(weights) for weight in weights]


def _survivors(distribution: Distribution) -> set[int]:
    return {fate.token_id for fate in distribution.tokens if fate.final > 0}


def test_by_hand() -> None:
    """Of 0.4, 0.3, 0.2, 0.1, min_p removes the last (below 0.12), top_k the third, top_p none."""
    distribution = _inspect(_logs(0.2, 0.4, 0.1, 0.3), min_p=0.3, top_k=2, top_p=0.6)
    rows = [
        (
            fate.token_id,
            round(fate.probability, 6),
            tuple(fate.kept_by.values()),
            round(fate.final, 6),
        )
        for fate in distribution.tokens
    ]
    assert rows == [
        (1, 0.4, (True, True, True), 0.571429),
        (3, 0.3, (True, True, True), 0.428571),
        (0, 0.2, (True, False, None), 0.0),
        (2, 0.1, (False, None, None), 0.0),
    ]
    assert list(distribution.tokens[0].kept_by) == ["min_p", "top_k", "top_p"]
    assert distribution.num_surviving == 2
    assert distribution.surviving_mass == pytest.approx(0.7, abs=1e-6)


def test_top_p_counts_what_top_k_left() -> None:
    """Of 0.5, 0.3, 0.2 top_k leaves 0.625 and 0.375; top_p 0.6 is reached by the first alone."""
    assert _survivors(_inspect(_logs(0.5, 0.3, 0.2), top_p=0.6)) == {0, 1}
    assert _survivors(_inspect(_logs(0.5, 0.3, 0.2), top_p=0.6, top_k=2)) == {0}


@pytest.mark.parametrize(
    ("top_p", "survivors"),
    [(0.499, {0}), (0.501, {0, 1}), (0.799, {0, 1}), (0.801, {0, 1, 2}), (1.0, {0, 1, 2})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, survivors: set[int]) -> None:
    assert _survivors(_inspect(_logs(0.5, 0.3, 0.2), top_p=top_p)) == survivors


@pytest.mark.parametrize(("min_p", "survivors"), [(0.399, {0, 1, 2}), (0.401, {0, 1}), (1.0, {0})])
def test_min_p_is_a_fraction_of_the_most_likely(min_p: float, survivors: set[int]) -> None:
    assert _survivors(_inspect(_logs(0.5, 0.3, 0.2), min_p=min_p)) == survivors


def test_temperature_comes_before_the_filters() -> None:
    """0.8 and 0.2 at temperature 0.5 are 16/17 and 1/17."""
    distribution = _inspect(_logs(0.8, 0.2), temperature=0.5, min_p=0.2)
    first, second = distribution.tokens
    assert first.after_temperature == pytest.approx(16 / 17, abs=1e-6)
    assert second.after_temperature == pytest.approx(1 / 17, abs=1e-6)
    assert second.kept_by == {"min_p": False, "top_k": None, "top_p": None}
    assert first.final == 1.0
    assert distribution.surviving_mass == pytest.approx(16 / 17, abs=1e-6)


def test_ties_at_the_kth_place_all_stay() -> None:
    assert _survivors(_inspect([1.0, 0.0, 0.0, -1.0], top_k=2)) == {0, 1, 2}


def test_ties_are_listed_by_id() -> None:
    fates = _inspect([0.0, 1.0, 0.0, 1.0], temperature=1.0).tokens
    assert [fate.token_id for fate in fates] == [1, 3, 0, 2]


def test_greedy_takes_the_first_of_the_most_likely() -> None:
    distribution = _inspect([0.0, 1.0, 1.0])
    assert _finals(distribution).tolist() == [0.0, 1.0, 0.0]
    assert (distribution.num_surviving, distribution.surviving_mass) == (1, 1.0)


def test_impossible_tokens() -> None:
    distribution = _inspect([-math.inf, 0.0, 0.0], temperature=2.0)
    assert _finals(distribution).tolist() == [0.0, 0.5, 0.5]
    assert distribution.num_surviving == 2


def test_as_many_tokens_as_asked_for() -> None:
    scores = np.arange(50, dtype=np.float32)
    distribution = inspect_distribution(scores, resolve_sampling(temperature=1.0), 7)
    assert [fate.token_id for fate in distribution.tokens] == [49, 48, 47, 46, 45, 44, 43]
    assert distribution.num_surviving == 50


@PLAIN
@given(scores=SCORES, temperature=TEMPERATURES)
def test_equal_to_a_plain_softmax(scores: list[float], temperature: float) -> None:
    distribution = _inspect(scores, temperature=temperature)
    model, tempered = _plain_softmax(scores), _plain_softmax(scores, temperature)
    for fate in distribution.tokens:
        assert fate.probability == pytest.approx(model[fate.token_id], abs=1e-12)
        assert fate.after_temperature == pytest.approx(tempered[fate.token_id], abs=1e-12)
        assert fate.final == pytest.approx(tempered[fate.token_id], abs=1e-12)


@PLAIN
@given(
    scores=SCORES,
    temperature=TEMPERATURES,
    top_k=st.integers(1, 40),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
)
def test_equal_to_plain_filters(
    scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Token by token, by the words of the documentation; `near` leaves out rounding at a border."""
    top_k = min(top_k, len(scores))
    controls = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    tempered = _plain_softmax(scores, temperature)
    left = [p if p >= min_p * max(tempered) else 0.0 for p in tempered]
    near = any(0 < abs(p - min_p * max(tempered)) < 1e-12 for p in tempered)
    kth = sorted(left, reverse=True)[top_k - 1]
    left = [p if p >= kth else 0.0 for p in left]
    total, mass = math.fsum(left), 0.0
    kept: set[int] = set()
    for token in sorted(range(len(left)), key=lambda t: left[t], reverse=True):
        near = near or abs(mass - top_p) < 1e-9
        if kept and mass >= top_p:
            break
        kept.add(token)
        mass += left[token] / total
    distribution = _inspect(scores, **controls)
    if near:
        return
    kept_mass = math.fsum(left[token] for token in kept)
    expected = sorted((left[token] / kept_mass for token in kept), reverse=True)
    finals = sorted(_finals(distribution), reverse=True)[: len(expected)]
    assert distribution.num_surviving == sum(p > 0 for p in expected)
    assert finals == pytest.approx(expected, abs=1e-9)


@PLAIN
@given(
    scores=SCORES,
    temperature=TEMPERATURES,
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
)
def test_final_probabilities_add_up_to_one(
    scores: list[float], temperature: float, top_p: float, min_p: float
) -> None:
    distribution = _inspect(scores, temperature=temperature, top_p=top_p, min_p=min_p)
    assert _finals(distribution).sum() == pytest.approx(1.0)
    assert 1 <= distribution.num_surviving <= len(scores)
    assert 0.0 < distribution.surviving_mass <= 1.0 + 1e-12


@PLAIN
@given(scores=st.lists(st.integers(-160, 160).map(lambda i: i / 8), min_size=1, unique=True))
def test_top_k_one_equals_greedy(scores: list[float]) -> None:
    assert _finals(_inspect(scores, top_k=1)).tolist() == _finals(_inspect(scores)).tolist()


@PLAIN
@given(scores=SCORES, temperature=TEMPERATURES, bounds=st.tuples(*[st.floats(0.01, 1.0)] * 2))
def test_a_stricter_filter_keeps_a_part_of_what_a_looser_one_keeps(
    scores: list[float], temperature: float, bounds: tuple[float, float]
) -> None:
    low, high = sorted(bounds)
    few, many = (
        _survivors(_inspect(scores, temperature=temperature, top_p=top_p)) for top_p in (low, high)
    )
    assert few <= many
    few, many = (
        _survivors(_inspect(scores, temperature=temperature, min_p=min_p)) for min_p in (high, low)
    )
    assert few <= many
    small, large = (max(1, math.ceil(bound * len(scores))) for bound in (low, high))
    few, many = (
        _survivors(_inspect(scores, temperature=temperature, top_k=top_k))
        for top_k in (small, large)
    )
    assert few <= many


@PLAIN
@given(scores=SCORES, temperature=TEMPERATURES)
def test_filters_that_are_off_keep_every_token(scores: list[float], temperature: float) -> None:
    off = _inspect(scores, temperature=temperature, top_p=1.0, min_p=0.0, top_k=len(scores))
    assert off.surviving_mass == pytest.approx(1.0)
    assert _finals(off) == pytest.approx(_finals(_inspect(scores, temperature=temperature)))
