"""Two models along one text: where they part, and by how much."""

import math

import pytest

from app.checking.comparison import Difference, change, difference
from app.engine.reference import Choice

# A text of three tokens, of which the reference would take the first and the last.
TEXT = [5, 6, 7]
REFERENCE = [Choice(5, -0.1, -0.1), Choice(9, -0.7, -0.9), Choice(7, -0.2, -0.2)]


def test_the_first_divergence_and_its_margin() -> None:
    found = difference(TEXT, [-0.1, -0.85, -0.2], REFERENCE)

    assert found.divergence == 1
    assert found.margin == pytest.approx(0.2)
    assert found.largest == pytest.approx(0.05)


def test_the_largest_difference_is_of_any_position() -> None:
    alike = [Choice(token_id, -0.5, -0.5) for token_id in TEXT]

    assert difference(TEXT, [-0.5, -0.5, -0.5], alike) == Difference(None, 0.0, 0.0)
    assert difference(TEXT, [-0.5, -0.5, -0.9], alike).largest == pytest.approx(0.4)
    assert difference(TEXT, [-0.1, -0.5, -0.5], alike).largest == pytest.approx(0.4)


def test_what_is_no_number_is_within_no_tolerance() -> None:
    alike = [Choice(token_id, -0.5, -0.5) for token_id in TEXT]
    for logprobs in ([math.nan, -0.5, -0.5], [-0.5, -0.5, math.nan]):
        found = difference(TEXT, logprobs, alike)
        assert found.largest == math.inf
        assert not found.is_within(1e9)


@pytest.mark.parametrize(
    ("found", "is_within"),
    [
        (Difference(None, 0.0, 0.01), True),
        (Difference(None, 0.0, 0.011), False),
        (Difference(3, 0.01, 0.0), True),
        (Difference(3, 0.011, 0.0), False),
    ],
    ids=["rounding", "another number", "a tie", "another token"],
)
def test_rounding_and_ties_are_no_difference(found: Difference, is_within: bool) -> None:
    assert found.is_within(0.01) == is_within


def test_a_change_is_of_the_same_text() -> None:
    base = [Choice(5, -0.1, -0.1), Choice(6, -0.3, -0.3), Choice(1, -0.2, -2.0)]

    changed = change(base, REFERENCE)

    assert changed.divergence == 1
    assert changed.largest == pytest.approx(1.8)


def test_an_adapter_that_changes_nothing() -> None:
    assert change(REFERENCE, REFERENCE) == Difference(None, 0.0, 0.0)
