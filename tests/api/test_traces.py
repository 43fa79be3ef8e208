"""A span for each request, and one for each of its phases, as an OTLP receiver gets them."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.errors import StartError
from app.telemetry import traces
from app.telemetry.traces import tracing
from tests.api.support import add_lora, serving
from tests.fake_engine import FakeEngine
from tests.otlp import Receiver, attributes, receiving

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
    "labels": ["good", "bad"],
}


@pytest.fixture(autouse=True)
def _no_traces_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


async def test_a_request_and_its_phases(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            version = await add_lora(served, "task")
            response = await served.client.post(
                "/generate",
                json={"prompt": "ab", "adapter": "task", "max_new_tokens": 3},
                headers={"x-request-id": "mine"},
            )
            assert response.status_code == 200
    span = receiver.span("POST /generate")
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "url.path": "/generate",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "softserve.request_id": "mine",
        "softserve.key": "anonymous",
        "softserve.outcome": "success",
        "softserve.adapter": f"task@{version}",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "softserve",
        "gen_ai.request.model": "echo",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.choice.count": 1,
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
    }
    phases = ["admission", "adapter", "tokenize", "queue", "prefill", "decode"]
    assert receiver.children(span) == phases
    assert receiver.service["service.name"] == "softserve"
    for child in receiver.spans:
        if child.parent_span_id == span.span_id:
            assert span.start_time_unix_nano <= child.start_time_unix_nano
            assert child.start_time_unix_nano <= child.end_time_unix_nano


async def test_a_stream_has_the_same_phases(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            await served.generate("ab", stream=True)
    span = receiver.span("POST /generate")
    assert attributes(span)["softserve.outcome"] == "success"
    phases = ["admission", "tokenize", "queue", "prefill", "decode"]
    assert receiver.children(span) == phases


async def test_a_template_and_its_labels(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            response = await served.client.put("/icl/templates/mood", json=TEMPLATE)
            version = response.json()["live"][:12]
            body = {"template": "mood", "inputs": {"text": "a"}}
            assert (await served.client.post("/icl/generate", json=body)).status_code == 200
    span = receiver.span("POST /icl/generate")
    assert attributes(span)["softserve.template"] == f"mood@{version}"
    phases = ["admission", "tokenize", "labels", "queue", "prefill", "decode"]
    assert receiver.children(span) == phases
    receiver.span("PUT /icl/templates/{name}")


async def test_the_callers_trace_is_taken_over(
    receiver: Receiver, events: list[dict[str, Any]]
) -> None:
    with tracing():
        async with serving() as served:
            events.clear()
            headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
            await served.client.post("/generate", json={"prompt": "a"}, headers=headers)
    span = receiver.span("POST /generate")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert {each.trace_id.hex() for each in receiver.spans} == {TRACE_ID}
    assert events[-1]["trace_id"] == TRACE_ID


async def test_a_trace_that_the_caller_does_not_record_is_not_sent(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
            response = await served.client.post("/generate", json={"prompt": "a"}, headers=headers)
            assert response.status_code == 200
    assert receiver.spans == []


async def test_a_traceparent_that_is_none_begins_a_trace(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            headers = {"traceparent": "00-nonsense"}
            await served.client.post("/generate", json={"prompt": "a"}, headers=headers)
    assert receiver.span("POST /generate").parent_span_id == b""


async def test_a_refusal_is_no_error_of_the_servers(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            await served.generate("a", adapter="nobody")
    span = receiver.span("POST /generate")
    assert attributes(span)["error.type"] == "adapter_not_found"
    assert attributes(span)["http.response.status_code"] == 404
    assert span.status.code == Status.STATUS_CODE_UNSET


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at_chunk", [0, 1])
async def test_a_failure_is_an_error(receiver: Receiver, stream: bool, at_chunk: int) -> None:
    engine = FakeEngine()
    with tracing():
        async with serving(engine) as served:
            engine.fail(RuntimeError("swordfish"), at_chunk=at_chunk)
            await served.generate("ab", stream=stream)
    span = receiver.span("POST /generate")
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "internal_error"
    assert "swordfish" not in str(receiver.spans)


async def test_texts_are_not_traced(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            await served.generate("swordfish")
            await served.generate("swordfish", stream=True)
            await served.generate("swordfish" * 100)
            await served.generate("a", adapter="swordfish")
    assert len(receiver.spans) > 4
    assert "swordfish" not in str(receiver.spans)


async def test_probes_and_scrapes_are_not_traced(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            for path in ("/health/live", "/health/ready", "/metrics", "/info"):
                await served.get(path)
    assert [span.name for span in receiver.spans] == ["GET /info"]


async def test_a_path_that_is_nowhere_names_no_span(receiver: Receiver) -> None:
    with tracing():
        async with serving() as served:
            await served.get("/nothing/here")
    assert [span.name for span in receiver.spans] == ["GET"]


async def test_the_environment_names_the_service(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    with tracing():
        async with serving() as served:
            await served.generate()
    assert receiver.service["service.name"] == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
    ],
)
async def test_off(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with tracing():
        async with serving() as served:
            assert (await served.generate()).status_code == 200
    assert receiver.spans == []


def test_a_protocol_that_is_not_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(StartError, match="http/json"), tracing():
        pass


async def test_an_endpoint_that_never_answers_harms_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "FLUSH_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        # The thread that waits for it ends soon after the test.
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        with tracing():
            async with serving() as served:
                for _ in range(20):
                    assert (await served.generate()).status_code == 200
    assert traces._tracer is None
