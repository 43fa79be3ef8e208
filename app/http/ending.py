"""What is told of every request: it is counted, traced, and has a last line in the log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry.trace import INVALID_SPAN, Span, StatusCode, format_trace_id
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import Scope

from app.access.caller import Caller
from app.http.errors import STATUSES
from app.serving.ledger import Ledger
from app.telemetry.metrics import Metrics
from app.telemetry.traces import request_span
from app.telemetry.usage import Name, Outcome
from softserve.schema.keys import without_secrets

log = structlog.get_logger(__name__)

# Whatever was asked for: who asks, how much, how often, or when was the reason.
TURNED_AWAY = {401, 403, 408, 413, 414, 429, 431, 503}
# They come every few seconds.
UNTRACED = {"/health/live", "/health/ready", "/metrics"}


def count_from_zero(metrics: Metrics) -> None:
    """Show every reason before it comes up: to an alert, what begins with 1 has not grown."""
    for status, reason in STATUSES.values():
        if status in TURNED_AWAY:
            metrics.rejections.labels(reason)


@contextmanager
def traced(scope: Scope) -> Iterator[Span]:
    """The span of a request; the log names its trace. Probes and scrapes have none."""
    if scope["path"] in UNTRACED:
        yield INVALID_SPAN
        return
    with request_span(scope["method"], Headers(scope=scope)) as span:
        if not span.is_recording():
            yield span
            return
        trace_id = format_trace_id(span.get_span_context().trace_id)
        with structlog.contextvars.bound_contextvars(trace_id=trace_id):
            yield span


def record_end(
    metrics: Metrics, span: Span, scope: Scope, status: int | None, started: float
) -> None:
    """Tell how a request ended; `started` is when, as `time.perf_counter` says."""
    state: dict[str, Any] = scope["state"]
    outcome: Outcome = state.get("outcome") or _outcome_of(status)
    _count(metrics, scope, status, outcome)
    _trace(span, scope, status, outcome)
    # Probes come every few seconds: they would bury the rest.
    record = log.debug if scope["method"] in {"GET", "HEAD"} else log.info
    record(
        "request ended",
        method=scope["method"],
        path=scope["path"],
        status=status,
        outcome=outcome,
        duration_ms=round((time.perf_counter() - started) * 1000, 1),
        **_told_of(state),
    )


def _count(metrics: Metrics, scope: Scope, status: int | None, outcome: Outcome) -> None:
    state: dict[str, Any] = scope["state"]
    metrics.requests.labels(endpoint_of(scope), outcome).inc()
    ledger: Ledger | None = state.get("ledger")
    if ledger is not None:
        ledger.count(outcome)
    else:
        caller: Caller = state["caller"]
        metrics.usage.of(Name("key", caller.name)).outcomes[outcome] += 1
    if status in TURNED_AWAY and "error_type" in state:
        metrics.rejections.labels(state["error_type"]).inc()


def _trace(span: Span, scope: Scope, status: int | None, outcome: Outcome) -> None:
    if not span.is_recording():
        return
    state: dict[str, Any] = scope["state"]
    caller: Caller = state["caller"]
    attributes: dict[str, AttributeValue] = {
        "http.request.method": scope["method"],
        "url.path": without_secrets(scope["path"]),
        "url.scheme": scope["scheme"],
        "softserve.request_id": state["request_id"],
        "softserve.key": caller.name,
        "softserve.outcome": outcome,
    }
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    if "route" in scope:
        attributes["http.route"] = scope["route"].path
        span.update_name(f"{scope['method']} {scope['route'].path}")
    if status is not None:
        attributes["http.response.status_code"] = status
    if "error_type" in state:
        attributes["error.type"] = state["error_type"]
    span.set_attributes(attributes)
    # By the conventions of HTTP, what a client did wrong is no error of the server's span.
    if outcome == "failed" or (status or 0) >= 500:
        span.set_status(StatusCode.ERROR)


def _told_of(state: dict[str, Any]) -> dict[str, Any]:
    """The key, the error, and what the request used and generated, as far as there is any."""
    caller: Caller = state["caller"]
    told: dict[str, Any] = {"key": caller.name}
    if "error_type" in state:
        told["error"] = state["error_type"]
    ledger: Ledger | None = state.get("ledger")
    return told if ledger is None else told | ledger.summary()


def endpoint_of(scope: Scope) -> str:
    """The path of the route that took the request; there are only so many."""
    route = scope.get("route")
    return "unknown" if route is None else str(route.path).strip("/")


def _outcome_of(status: int | None) -> Outcome:
    match status:
        case None:
            return "aborted"
        case 429 | 503:
            return "refused"
        case _ if status >= 500:
            return "failed"
        case _ if status >= 400:
            return "invalid"
        case _:
            return "success"
