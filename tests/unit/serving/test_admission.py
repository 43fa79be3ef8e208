"""Work in flight is bounded; a closed door says why."""

import asyncio

import pytest

from app.errors import EngineDied, EngineStarting, InvalidRequest, ServerDraining, ServerFull
from app.serving.admission import Admission


@pytest.fixture
def admission() -> Admission:
    admission = Admission(max_sequences=4)
    admission.open()
    return admission


def test_starting_at_first() -> None:
    admission = Admission(max_sequences=4)
    with pytest.raises(EngineStarting), admission.slot(1):
        pass
    assert admission.sequences_in_flight == 0


def test_slots_add_up_to_the_limit(admission: Admission) -> None:
    with admission.slot(3), admission.slot(1):
        assert admission.sequences_in_flight == 4
        with pytest.raises(ServerFull) as raised, admission.slot(1):
            pass
        assert raised.value.message == (
            "the server has 4 completions in flight and admits 4: try again in a moment"
        )
        assert admission.sequences_in_flight == 4
    assert admission.sequences_in_flight == 0


def test_a_left_slot_is_free_again(admission: Admission) -> None:
    for _ in range(3):
        with admission.slot(4):
            assert admission.sequences_in_flight == 4


def test_an_error_frees_the_slot(admission: Admission) -> None:
    with pytest.raises(ZeroDivisionError), admission.slot(4):
        raise ZeroDivisionError
    assert admission.sequences_in_flight == 0


def test_more_than_ever_fits_is_the_requests_fault(admission: Admission) -> None:
    with pytest.raises(InvalidRequest) as raised, admission.slot(5):
        pass
    assert raised.value.param == "n"
    assert "asks for 5 completions (prompts times n)" in raised.value.message
    assert "at most 4 at once: split the request" in raised.value.message


@pytest.mark.parametrize("refusal", [ServerDraining("draining"), EngineDied("dead")])
def test_closed(admission: Admission, refusal: ServerDraining | EngineDied) -> None:
    with admission.slot(1):
        admission.close(refusal)
        with pytest.raises(type(refusal)), admission.slot(1):
            pass
        assert admission.sequences_in_flight == 1, "what is in flight stays"


async def test_idle_when_the_last_slot_is_left(admission: Admission) -> None:
    await admission.wait_until_idle()
    first, second = admission.slot(1), admission.slot(2)
    first.__enter__()
    second.__enter__()
    waiting = asyncio.create_task(admission.wait_until_idle())
    await asyncio.sleep(0)
    first.__exit__(None, None, None)
    await asyncio.sleep(0)
    assert not waiting.done()
    second.__exit__(None, None, None)
    await waiting
