"""Weighted fair queueing: who gets how much, and who never waits for whom."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.caller import ANONYMOUS, Caller, Quotas
from app.serving.turns import Turns, Wish


def caller(name: str, weight: float = 1.0) -> Caller:
    return Caller(name, frozenset(["user"]), quotas=Quotas(weight=weight))


A, B, HEAVY = caller("a"), caller("b"), caller("heavy", weight=3.0)


def wish(of: Caller = ANONYMOUS, num_tokens: int = 10, places: int = 1, priority: int = 0) -> Wish:
    return Wish(of, places, num_tokens, priority)


def served_in_turn(turns: Turns, number: int) -> list[str]:
    """Who is next, one at a time: each ends before the next begins."""
    order = []
    for _ in range(number):
        (granted,) = turns.granted()
        order.append(granted.caller.name)
        turns.give_back(granted, 0)
    return order


def test_as_many_as_there_are_places() -> None:
    turns = Turns(2)
    wishes = [wish() for _ in range(3)]
    for each in wishes:
        turns.add(each)
    assert list(turns.granted()) == wishes[:2]
    turns.give_back(wishes[0], 0)
    assert list(turns.granted()) == wishes[2:]
    assert turns.num_held == 2


def test_one_with_a_single_wish_does_not_wait_for_one_with_many() -> None:
    turns = Turns(1)
    for _ in range(256):
        turns.add(wish(A))
    assert served_in_turn(turns, 5) == ["a"] * 5
    turns.add(wish(B))
    assert "b" in served_in_turn(turns, 2)


@pytest.mark.parametrize(("first", "second"), [(10, 10), (10, 40), (200, 5)])
def test_tokens_are_shared_by_weight(first: int, second: int) -> None:
    turns = Turns(1)
    for _ in range(600):
        turns.add(wish(A, num_tokens=first))
        turns.add(wish(HEAVY, num_tokens=second))
    tokens = Counter[str]()
    size = {"a": first, "heavy": second}
    while min(tokens["a"], tokens["heavy"]) < 1000:
        (name,) = served_in_turn(turns, 1)
        tokens[name] += size[name]
    assert tokens["heavy"] / tokens["a"] == pytest.approx(3.0, rel=0.25)


def test_what_was_not_used_is_given_back() -> None:
    turns = Turns(1)
    for _ in range(100):
        turns.add(wish(A, num_tokens=100))
        turns.add(wish(B, num_tokens=10))
    counts = Counter[str]()
    for _ in range(60):
        (granted,) = turns.granted()
        counts[granted.caller.name] += 1
        turns.give_back(granted, granted.num_tokens - 10)
    assert abs(counts["a"] - counts["b"]) <= 2, "each had ten tokens a time, whatever it asked for"


def test_a_pause_saves_nothing_up() -> None:
    turns = Turns(1)
    turns.add(wish(B))
    assert served_in_turn(turns, 1) == ["b"]
    for _ in range(100):
        turns.add(wish(A))
    served_in_turn(turns, 50)
    for _ in range(50):
        turns.add(wish(B))
    assert 9 <= Counter(served_in_turn(turns, 20))["b"] <= 11


def test_of_one_caller_the_more_important_comes_first_then_the_older() -> None:
    turns = Turns(1)
    low, old, young, high = wish(), wish(priority=1), wish(priority=1), wish(priority=2)
    for each in (low, old, young, high):
        turns.add(each)
    order = []
    for _ in range(4):
        (granted,) = turns.granted()
        order.append(granted)
        turns.give_back(granted, 0)
    assert order == [high, old, young, low]


def test_a_large_wish_is_not_overtaken_by_small_ones() -> None:
    turns = Turns(4)
    running, large, small = wish(), wish(places=4), wish()
    turns.add(running)
    assert list(turns.granted()) == [running]
    turns.add(large)
    turns.add(small)
    assert list(turns.granted()) == []
    turns.give_back(running, 0)
    assert list(turns.granted()) == [large]


def test_a_wish_for_more_than_there_is_gets_all() -> None:
    turns = Turns(4)
    larger = wish(places=16)
    turns.add(larger)
    assert list(turns.granted()) == [larger]
    assert turns.num_held == 4


def test_the_last_eighth_is_for_others() -> None:
    turns = Turns(16)
    for _ in range(20):
        turns.add(wish(A))
    assert len(list(turns.granted())) == 14
    late = wish(B)
    turns.add(late)
    assert list(turns.granted()) == [late]


def test_without_keys_nobody_else_can_come() -> None:
    turns = Turns(16)
    for _ in range(20):
        turns.add(wish(ANONYMOUS))
    assert len(list(turns.granted())) == 16


def test_what_is_withdrawn_is_not_granted() -> None:
    turns = Turns(1)
    first, second = wish(A), wish(B)
    turns.add(first)
    turns.add(second)
    turns.withdraw(first)
    assert list(turns.granted()) == [second]


@given(
    st.integers(1, 9),
    st.lists(
        st.tuples(st.sampled_from([A, B, HEAVY]), st.integers(1, 12), st.integers(1, 50)),
        max_size=60,
    ),
)
def test_every_wish_is_granted_in_the_end(
    capacity: int, asked: list[tuple[Caller, int, int]]
) -> None:
    turns = Turns(capacity)
    waiting = [wish(of, tokens, places) for of, places, tokens in asked]
    for each in waiting:
        turns.add(each)
    running: list[Wish] = []
    while waiting or running:
        granted = list(turns.granted())
        assert granted or running, "nothing runs, and nothing begins"
        assert turns.num_held <= capacity
        waiting = [each for each in waiting if each not in granted]
        running.extend(granted)
        turns.give_back(running.pop(0), 0)
    assert turns.num_held == 0
