"""A real OTLP receiver: what a server sends it over HTTP, parsed."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.threaded import in_thread


class Receiver:
    """The spans that came, and the service that they came from."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Span] = []
        self.service: dict[str, Any] = {}

    def receive(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.service = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def span(self, name: str) -> Span:
        (span,) = [each for each in self.spans if each.name == name]
        return span

    def children(self, parent: Span) -> list[str]:
        """The names of its phases, as they began."""
        spans = [each for each in self.spans if each.parent_span_id == parent.span_id]
        return [each.name for each in sorted(spans, key=lambda each: each.start_time_unix_nano)]


def attributes(span: Span) -> dict[str, Any]:
    return _values(span.attributes)


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, str(kind))


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.receive(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    with in_thread(server):
        yield receiver
