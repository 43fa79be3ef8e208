"""Which version of a split a request gets."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from app.versions.shadows import Shadow
from app.versions.splits import Asker, Split
from softserve.schema.versions import Sticky

OLD, NEW, NEWER = (f"{digit:064x}" for digit in range(3))
SESSIONS = [Asker(session=f"session-{i}") for i in range(2000)]

Weights = st.integers(1, 10**9)
Sessions = st.text(min_size=1)


def dealt(split: Split, askers: list[Asker]) -> list[str]:
    return [split.choose("adapter summary", asker) for asker in askers]


def is_fair(count: int, total: int, share: float) -> bool:
    """Not so for one draw in a million that is."""
    return bool(binomtest(count, total, share).pvalue > 1e-6)


@pytest.mark.parametrize(
    ("sticky", "askers"), [("none", [Asker()] * 2000), ("session", SESSIONS), ("key", SESSIONS)]
)
def test_the_parts_are_as_the_weights_say(sticky: Sticky, askers: list[Asker]) -> None:
    split = Split({OLD: 70, NEW: 20, NEWER: 10}, sticky)
    counts = Counter(dealt(split, askers))
    for digest, weight in split.weights.items():
        assert is_fair(counts[digest], len(askers), weight / 100)


@given(session=Sessions, old=Weights, new=Weights)
def test_a_session_stays_with_its_version(session: str, old: int, new: int) -> None:
    split = Split({OLD: old, NEW: new}, "session")
    first = split.choose("adapter summary", Asker("a", session))
    assert split.choose("adapter summary", Asker("b", session)) == first
    # The order in which the versions are given is no part of it, nor is the sum of the weights.
    doubled = Split({NEW: 2 * new, OLD: 2 * old}, "session")
    assert doubled.choose("adapter summary", Asker(None, session)) == first


@given(session=Sessions, old=Weights, new=Weights, newer=Weights, more=Weights)
def test_a_version_with_more_weight_gives_nobody_away(
    session: str, old: int, new: int, newer: int, more: int
) -> None:
    asker = Asker(session=session)
    before = Split({OLD: old, NEW: new, NEWER: newer}, "session").choose("x", asker)
    after = Split({OLD: old, NEW: new + more, NEWER: newer}, "session").choose("x", asker)
    assert after in {before, NEW}


def test_from_a_tenth_to_a_fifth() -> None:
    """Given as percentages, where what one version gains another loses."""
    tenth = dealt(Split({OLD: 90, NEW: 10}, "session"), SESSIONS)
    fifth = dealt(Split({OLD: 80, NEW: 20}, "session"), SESSIONS)
    moves = Counter(zip(tenth, fifth, strict=True))
    assert moves[NEW, OLD] == 0
    assert is_fair(moves[OLD, NEW], len(SESSIONS), 0.1)


def test_names_are_dealt_apart() -> None:
    split = Split({OLD: 1, NEW: 1}, "session")
    alike = sum(split.choose("a", asker) == split.choose("b", asker) for asker in SESSIONS)
    assert is_fair(alike, len(SESSIONS), 0.5)


def test_a_key_stays_with_its_version() -> None:
    split = Split({OLD: 1, NEW: 1}, "key")
    by_key = {
        key: {split.choose("x", Asker(key, f"{i}")) for i in range(20)}
        for key in map(str, range(9))
    }
    assert all(len(versions) == 1 for versions in by_key.values())
    assert set.union(*by_key.values()) == {OLD, NEW}


@pytest.mark.parametrize("sticky", ["none", "key", "session"])
def test_who_is_nobody_in_particular_is_dealt_at_random(sticky: Sticky) -> None:
    asked = dealt(Split({OLD: 1, NEW: 1}, sticky), [Asker()] * 64)
    assert set(asked) == {OLD, NEW}


def test_a_shadow_takes_its_share() -> None:
    shadow = Shadow(NEW, 25.0, datetime.now(UTC))
    assert is_fair(sum(shadow.takes_one() for _ in range(2000)), 2000, 0.25)
    assert all(Shadow(NEW, 100, shadow.since).takes_one() for _ in range(200))
