"""A request's log lines carry its id, and never what the client wrote."""

import structlog

from tests.api.support import Served
from tests.fake_engine import FakeEngine

Events = list[structlog.typing.EventDict]


async def test_how_a_request_ended(served: Served, events: Events) -> None:
    events.clear()
    await served.client.post("/generate", json={"prompt": "a"}, headers={"x-request-id": "mine"})
    (ended,) = events
    assert ended.pop("duration_ms") >= ended.pop("ttft_ms") >= 0
    assert ended == {
        "event": "request ended",
        "request_id": "mine",
        "log_level": "info",
        "method": "POST",
        "path": "/generate",
        "status": 200,
        "outcome": "success",
        "key": "anonymous",
        "prompt_tokens": 1,
        "completion_tokens": 2,
    }


async def test_probes_are_logged_for_debugging_only(served: Served, events: Events) -> None:
    events.clear()
    await served.get("/health/ready")
    assert [(event["event"], event["log_level"]) for event in events] == [
        ("request ended", "debug")
    ]


async def test_a_failure_has_its_reason_under_the_requests_id(
    served: Served, engine: FakeEngine, events: Events
) -> None:
    events.clear()
    engine.fail(RuntimeError("no reason"))
    response = await served.generate()
    assert [(event["event"], event["request_id"]) for event in events] == [
        ("request failed", response.headers["x-request-id"]),
        ("request ended", response.headers["x-request-id"]),
    ]
    assert events[0]["exc_info"]
    assert events[1]["status"] == 500


async def test_prompts_are_not_logged(served: Served, events: Events) -> None:
    await served.generate("swordfish")
    await served.generate("swordfish", n=0)
    await served.generate("swordfish", stream=True)
    assert "swordfish" not in repr(events)
