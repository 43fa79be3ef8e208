"""When there will be room, from how fast things ended lately."""

from app.access.rate import MAX_SECONDS, UNKNOWN_SECONDS, Rate


def test_the_pace_of_the_last_ones_goes_on() -> None:
    now = 0.0
    rate = Rate(lambda: now)
    assert rate.seconds_for(5) == UNKNOWN_SECONDS
    for _ in range(4):
        rate.count(2)
        now += 1.0
    assert rate.seconds_for(4) == 2.0
    assert rate.seconds_for(1) == 0.5
    now += 4.0
    assert rate.seconds_for(4) == 4.0, "idle time counts"


def test_what_takes_for_ever_is_bounded() -> None:
    now = 0.0
    rate = Rate(lambda: now)
    rate.count(1)
    now += 1e9
    assert rate.seconds_for(1) == MAX_SECONDS
