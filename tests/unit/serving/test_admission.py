"""Work in flight is bounded; a closed door says why."""

import asyncio

import pytest

from app.access.caller import ANONYMOUS, Caller, Quotas
from app.errors import (
    EngineDied,
    EngineStarting,
    InvalidRequest,
    QuotaExceeded,
    ServerDraining,
    ServerFull,
)
from app.serving.admission import Admission, Demand

ONE_REQUEST = Caller("one", frozenset(["user"]), quotas=Quotas(max_requests_in_flight=1))
OTHER = Caller("other", frozenset(["user"]))


def of(num_sequences: int, num_prompt_tokens: int = 1) -> Demand:
    return Demand(num_sequences, num_prompt_tokens, max_new_tokens=10)


@pytest.fixture
def admission() -> Admission:
    admission = Admission(max_sequences=4, max_waiting_prompt_tokens=100)
    admission.open(2)
    return admission


def test_starting_at_first() -> None:
    admission = Admission(max_sequences=4, max_waiting_prompt_tokens=100)
    with pytest.raises(EngineStarting), admission.admit(ANONYMOUS, of(1)):
        pass
    with pytest.raises(EngineStarting):
        admission.check(ANONYMOUS)
    assert admission.sequences_in_flight == 0


def test_sequences_add_up_to_the_limit(admission: Admission) -> None:
    with admission.admit(ANONYMOUS, of(3)), admission.admit(ANONYMOUS, of(1)):
        assert admission.sequences_in_flight == 4
        with pytest.raises(ServerFull) as raised, admission.admit(ANONYMOUS, of(1)):
            pass
        assert raised.value.message == (
            "the server has 4 completions in flight and admits 4: try again in a moment"
        )
        with pytest.raises(ServerFull):
            admission.check(ANONYMOUS)
        assert admission.sequences_in_flight == 4
    assert admission.sequences_in_flight == 0
    admission.check(ANONYMOUS)


def test_what_has_ended_makes_room(admission: Admission) -> None:
    for _ in range(3):
        with admission.admit(ANONYMOUS, of(4)):
            assert admission.sequences_in_flight == 4


def test_an_error_makes_room(admission: Admission) -> None:
    with pytest.raises(ZeroDivisionError), admission.admit(ANONYMOUS, of(4)):
        raise ZeroDivisionError
    assert admission.sequences_in_flight == 0


def test_more_than_ever_fits_is_the_requests_fault(admission: Admission) -> None:
    with pytest.raises(InvalidRequest) as raised, admission.admit(ANONYMOUS, of(5)):
        pass
    assert raised.value.param == "n"
    assert "asks for 5 completions (prompts times n)" in raised.value.message
    assert "at most 4 at once: split the request" in raised.value.message


@pytest.mark.parametrize("refusal", [ServerDraining("draining"), EngineDied("dead")])
def test_closed(admission: Admission, refusal: ServerDraining | EngineDied) -> None:
    with admission.admit(ANONYMOUS, of(1)):
        admission.close(refusal)
        with pytest.raises(type(refusal)), admission.admit(ANONYMOUS, of(1)):
            pass
        assert admission.sequences_in_flight == 1, "what is in flight stays"


async def test_idle_when_the_last_request_has_its_answer(admission: Admission) -> None:
    await admission.wait_until_idle()
    first, second = admission.admit(ANONYMOUS, of(1)), admission.admit(ANONYMOUS, of(2))
    first.__enter__()
    second.__enter__().release()
    assert admission.sequences_in_flight == 1, "a released ticket counts for nothing"
    waiting = asyncio.create_task(admission.wait_until_idle())
    await asyncio.sleep(0)
    first.__exit__(None, None, None)
    await asyncio.sleep(0)
    assert not waiting.done(), "its answer is still being read"
    second.__exit__(None, None, None)
    await waiting
    assert admission.sequences_in_flight == 0


def test_the_last_part_is_kept_for_others() -> None:
    admission = Admission(max_sequences=16, max_waiting_prompt_tokens=100)
    admission.open(2)
    busy = Caller("busy", frozenset(["user"]))
    with admission.admit(busy, of(14)):
        with pytest.raises(ServerFull, match="some of them for other keys"):
            admission.check(busy)
        with admission.admit(OTHER, of(2)):
            assert admission.sequences_in_flight == 16


def test_waiting_prompt_tokens_are_bounded(admission: Admission) -> None:
    with admission.admit(ANONYMOUS, of(1, num_prompt_tokens=1000)) as larger_than_all:
        assert admission.num_waiting_prompt_tokens == 1000, "it is taken: nothing else waits"
        with pytest.raises(ServerFull) as raised, admission.admit(ANONYMOUS, of(1)):
            pass
        assert "prompts of 1,000 tokens wait for the engine, and 100 may" in raised.value.message
        larger_than_all.know_prompt_tokens(99)
        with admission.admit(ANONYMOUS, of(1)):
            assert admission.num_waiting_prompt_tokens == 100
    assert admission.num_waiting_prompt_tokens == 0


async def test_a_prompt_with_a_place_waits_no_longer(admission: Admission) -> None:
    with admission.admit(ANONYMOUS, of(2, num_prompt_tokens=90)) as ticket:
        async with ticket.place(1, 60):
            assert admission.num_waiting_prompt_tokens == 30
            async with ticket.place(1, 30):
                assert (admission.num_waiting_prompt_tokens, admission.places.num_held) == (0, 2)


def test_a_quota_is_the_callers_own(admission: Admission) -> None:
    with admission.admit(ONE_REQUEST, of(1)):
        with pytest.raises(QuotaExceeded):
            admission.check(ONE_REQUEST)
        with pytest.raises(QuotaExceeded), admission.admit(ONE_REQUEST, of(1)):
            pass
        with admission.admit(OTHER, of(1)):
            assert admission.sequences_in_flight == 2
    admission.check(ONE_REQUEST)


def test_who_is_refused_for_room_has_paid_nothing(admission: Admission) -> None:
    few = Caller("few", frozenset(["user"]), quotas=Quotas(prompt_tokens_per_minute=10))
    demand = of(1, num_prompt_tokens=20)
    with (
        admission.admit(ANONYMOUS, of(4)),
        pytest.raises(ServerFull),
        admission.admit(few, demand),
    ):
        pass
    admission.check(few)


def test_a_request_that_was_never_begun_pays_for_no_prompt(admission: Admission) -> None:
    few = Caller("few", frozenset(["user"]), quotas=Quotas(prompt_tokens_per_minute=10))
    with admission.admit(few, of(1, num_prompt_tokens=20)), pytest.raises(QuotaExceeded):
        admission.check(few)
    admission.check(few)
