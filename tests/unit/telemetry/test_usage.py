"""The measures of names: bounded, and those of what is gone end."""

import math
import time

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from app.telemetry.usage import IDLE_SECONDS, LATENCY_BOUNDS, Kind, Name, Usage
from tests import exposition
from tests.exposition import Series

PROMPT_TOKENS = "softserve_named_prompt_tokens_total"


def tokens_of(usage: Usage, name: Name, num_tokens: int = 1) -> None:
    usage.of(name).prompt_tokens += num_tokens


def series(usage: Usage, metric: str = PROMPT_TOKENS) -> Series:
    usage.forget_unknown()
    registry = CollectorRegistry()
    registry.register(usage)
    return exposition.series(generate_latest(registry).decode(), metric)


def text_of(bound: float) -> str:
    return "+Inf" if bound == math.inf else str(bound)


def adapter(name: str, digest: str = "a" * 64) -> Name:
    return Name.of_version("adapter", name, digest)


def test_a_version_has_its_own_series() -> None:
    usage = Usage(max_names=10)
    tokens_of(usage, adapter("task"), 2)
    tokens_of(usage, adapter("task", "b" * 64), 3)
    tokens_of(usage, Name("key", "team"), 4)
    assert series(usage) == {
        ("adapter", "task", "a" * 12): 2,
        ("adapter", "task", "b" * 12): 3,
        ("key", "team", ""): 4,
    }


def test_beyond_the_bound_is_other() -> None:
    usage = Usage(max_names=2)
    for name in ("one", "two", "three", "four", "one"):
        tokens_of(usage, adapter(name))
    tokens_of(usage, Name("key", "team"))
    assert series(usage) == {
        ("adapter", "one", "a" * 12): 2,
        ("adapter", "two", "a" * 12): 1,
        ("adapter", "other", ""): 2,
        ("key", "team", ""): 1,
    }


def test_an_idle_name_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    usage = Usage(max_names=2)
    tokens_of(usage, adapter("one"))
    tokens_of(usage, adapter("two"))
    now = IDLE_SECONDS - 1
    tokens_of(usage, adapter("one"))
    now = IDLE_SECONDS
    tokens_of(usage, adapter("three"))
    tokens_of(usage, adapter("four"))
    assert series(usage) == {
        ("adapter", "one", "a" * 12): 2,
        ("adapter", "three", "a" * 12): 1,
        ("adapter", "other", ""): 1,
    }


def test_what_is_not_known_any_more_is_forgotten() -> None:
    usage = Usage(max_names=2)
    known = [adapter("task")]
    usage.is_known["adapter"] = known.__contains__
    tokens_of(usage, adapter("task"))
    tokens_of(usage, adapter("task", "b" * 64))
    tokens_of(usage, adapter("beyond"))
    assert series(usage) == {("adapter", "task", "a" * 12): 1, ("adapter", "other", ""): 1}
    tokens_of(usage, Name("key", "stays"))
    known.clear()
    assert series(usage) == {("adapter", "other", ""): 1, ("key", "stays", ""): 1}


@pytest.mark.parametrize("kind", ["adapter", "key"])
def test_many_names_leave_nothing_behind(kind: Kind) -> None:
    usage = Usage(max_names=10)
    live: list[Name] = []
    usage.is_known[kind] = lambda name: name in live
    for number in range(2000):
        live[:] = [Name(kind, f"name-{number}")]
        request = usage.begin()
        usage.use(request, live[0])
        usage.end(request)
        if number % 5 == 0:
            series(usage)
    assert len(series(usage)) <= 2
    assert sum(map(len, usage._named.values())) <= 11
    assert not usage._in_flight


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.006, 0.3, 300.0, 1000.0])
def test_a_names_buckets_are_every_second_one(seconds: float) -> None:
    usage = Usage(max_names=1)
    usage.total.queue_time.observe(seconds)
    usage.of(adapter("task")).queue_time.observe(seconds)

    everything = series(usage, "softserve_queue_time_seconds_bucket")
    named = series(usage, "softserve_named_queue_time_seconds_bucket")

    assert everything == {
        (text_of(bound),): float(seconds <= bound) for bound in (*LATENCY_BOUNDS, math.inf)
    }
    assert named == {
        ("adapter", "task", "a" * 12, text_of(bound)): float(seconds <= bound)
        for bound in (*LATENCY_BOUNDS[::2], math.inf)
    }


def test_a_request_in_flight_waits_for_its_first_token() -> None:
    usage = Usage(max_names=1)
    waiting, running = usage.begin(), usage.begin()
    usage.use(waiting, adapter("task"))
    usage.use(waiting, Name("key", "team"))
    usage.use(running, adapter("beyond"))
    running.has_tokens = True
    assert series(usage, "softserve_named_requests_in_flight") == {
        ("adapter", "task", "a" * 12, "waiting"): 1,
        ("adapter", "task", "a" * 12, "running"): 0,
        ("adapter", "other", "", "waiting"): 0,
        ("adapter", "other", "", "running"): 1,
        ("key", "team", "", "waiting"): 1,
        ("key", "team", "", "running"): 0,
    }
    assert usage.in_flight("adapter", has_tokens=True) == {"beyond"}
    usage.end(waiting)
    usage.end(running)
    assert series(usage, "softserve_named_requests_in_flight") == {}
