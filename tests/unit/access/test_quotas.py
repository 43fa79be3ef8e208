"""Tokens a minute are paid ahead and given back; waiting times are computed."""

import pytest

from app.access.caller import Caller, Quotas
from app.access.quotas import Account, Accounts, Bucket, Charge
from app.errors import QuotaExceeded


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def account(clock: Clock, **quotas: int) -> Account:
    return Account(Caller("k", frozenset(["user"]), quotas=Quotas(**quotas)), clock)


def test_a_bucket_is_full_at_first_and_refills(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    assert bucket.seconds_until_some() == 0.0
    bucket.take(60)
    assert bucket.seconds_until_some() == 1.0
    bucket.take(60)
    assert bucket.seconds_until_some() == 61.0
    clock.seconds += 61.0
    assert bucket.seconds_until_some() == 0.0
    clock.seconds += 3600.0
    bucket.take(59)
    assert bucket.seconds_until_some() == 0.0
    bucket.take(1)
    assert bucket.seconds_until_some() == 1.0, "an idle hour saves no more than a minute up"


def test_without_a_limit_there_is_always_some(clock: Clock) -> None:
    bucket = Bucket(None, clock)
    bucket.take(1 << 40)
    assert bucket.seconds_until_some() == 0.0


@pytest.mark.parametrize("what", ["prompt", "completion"])
def test_one_request_can_overdraw_and_the_next_waits(clock: Clock, what: str) -> None:
    keys = account(clock, **{f"{what}_tokens_per_minute": 60})
    with keys.charged(Charge(100, 100, completion_tokens=100, has_begun=True)):
        with pytest.raises(QuotaExceeded) as raised:
            keys.check()
        assert raised.value.retry_after_seconds == 41.0
        assert raised.value.message == (
            f"the key k has used its 60 {what} tokens a minute: try again later, or ask for fewer "
            "tokens at once"
        )
    with pytest.raises(QuotaExceeded):
        keys.check()
    clock.seconds += 41.0
    keys.check()


def test_what_was_not_generated_is_given_back(clock: Clock) -> None:
    keys = account(clock, completion_tokens_per_minute=60)
    charge = Charge(1, 1000)
    with keys.charged(charge):
        charge.completion_tokens += 50
        with pytest.raises(QuotaExceeded):
            keys.check()
    keys.check()


def test_an_estimated_prompt_is_corrected(clock: Clock) -> None:
    keys = account(clock, prompt_tokens_per_minute=60)
    charge = Charge(59, 1)
    with keys.charged(charge):
        keys.correct(charge, 60)
        with pytest.raises(QuotaExceeded):
            keys.check()
        keys.correct(charge, 10)
        keys.check()


def test_a_request_that_never_began_has_cost_nothing(clock: Clock) -> None:
    keys = account(clock, prompt_tokens_per_minute=60, completion_tokens_per_minute=60)
    with keys.charged(Charge(1000, 1000)):
        pass
    keys.check()


def test_requests_in_flight(clock: Clock) -> None:
    keys = account(clock, max_requests_in_flight=2)
    with keys.charged(Charge(1, 1)):
        clock.seconds += 10.0
    with keys.charged(Charge(1, 1)), keys.charged(Charge(1, 1)):
        clock.seconds += 4.0
        with pytest.raises(QuotaExceeded) as raised:
            keys.check()
        assert raised.value.retry_after_seconds == 4.0, "one has ended, four seconds ago"
        assert "has 2 requests in flight and may have 2" in raised.value.message
    keys.check()


def test_changed_quotas_hold_at_once(clock: Clock) -> None:
    accounts = Accounts(clock)
    before = Caller("k", frozenset(["user"]), quotas=Quotas(prompt_tokens_per_minute=1))
    after = Caller("k", frozenset(["user"]), quotas=Quotas(prompt_tokens_per_minute=1000))
    with accounts.of(before).charged(Charge(5, 5)):
        with pytest.raises(QuotaExceeded):
            accounts.of(before).check()
        accounts.of(after).check()
