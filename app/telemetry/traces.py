"""Traces: one span for a request and one for each of its phases, sent over OTLP.

Off, and free, unless OTEL_EXPORTER_OTLP_ENDPOINT is set. The SDK reads what else there is in the
environment: the sampler, the bounds of its queue, headers, certificates.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from app.errors import StartError
from softserve import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

SERVICE_NAME = "softserve"
# What an endpoint that does not answer may cost at the end.
FLUSH_TIMEOUT_SECONDS = 5.0

# This process's; None where traces are off.
_tracer: Tracer | None = None


@contextmanager
def tracing() -> Iterator[None]:
    """Send traces meanwhile, if the environment says where to.

    Raises:
        StartError: over a protocol that is not spoken.
    """
    if not _wanted():
        yield
        return
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _tracer  # noqa: PLW0603
    # They warn of each attempt; that a batch is lost is an error.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    processor = BatchSpanProcessor(_exporter())
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer(SERVICE_NAME, __version__)
    try:
        yield
    finally:
        _tracer = None
        _flush(processor)


@contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """The span of a request, within the trace that its headers name."""
    if _tracer is None:
        yield INVALID_SPAN
        return
    with _tracer.start_as_current_span(name, propagate.extract(headers), SpanKind.SERVER) as span:
        yield span


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A part of the request that is being served."""
    if _tracer is None or not is_recording():
        yield
        return
    # How the request ended, its own span says; a refusal's text may quote the request.
    with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
        yield


def past_phases(names: Sequence[str], moments: Sequence[float]) -> None:
    """Parts that have ended, each when the next began, as `time.perf_counter` says."""
    if _tracer is None or not is_recording():
        return
    # The clocks are compared anew each time: they drift apart over weeks.
    offset = time.time() - time.perf_counter()
    times = [int((offset + moment) * 1e9) for moment in moments]
    for name, began, ended in zip(names, times[:-1], times[1:], strict=True):
        _tracer.start_span(name, start_time=began).end(ended)


def until_now(name: str) -> None:
    """A part that began with the request and has ended."""
    if _tracer is None:
        return
    from opentelemetry.sdk.trace import ReadableSpan

    if isinstance(request := trace.get_current_span(), ReadableSpan):
        _tracer.start_span(name, start_time=request.start_time).end()


def is_recording() -> bool:
    """Whether the request that is being served is traced."""
    return trace.get_current_span().is_recording()


def tell(attributes: Mapping[str, AttributeValue]) -> None:
    """Add to the span of the request that is being served."""
    trace.get_current_span().set_attributes(attributes)


def _flush(processor: "BatchSpanProcessor") -> None:
    """Send what is left. The SDK's own bound is half a minute, and cannot be set."""
    flushing = threading.Thread(target=processor.shutdown, daemon=True)
    flushing.start()
    flushing.join(FLUSH_TIMEOUT_SECONDS)


def _wanted() -> bool:
    has_endpoint = any(
        os.environ.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    is_off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return has_endpoint and not is_off


def _exporter() -> "SpanExporter":
    name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(name)
    match protocol:
        case None | "" | "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter()
        case "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter

            return trace_exporter.OTLPSpanExporter()
        case _:
            raise StartError(f"{name} is {protocol}: set http/protobuf or grpc, or leave it out")


def _resource() -> "Resource":
    """What the environment says of this service, and its name and version."""
    from opentelemetry.sdk.resources import Resource

    given = Resource.create({"service.version": __version__})
    is_named = not str(given.attributes["service.name"]).startswith("unknown_service")
    return given if is_named else given.merge(Resource({"service.name": SERVICE_NAME}))
