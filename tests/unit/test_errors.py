"""The one table from error to status, and the one body."""

from collections.abc import Iterator

import pytest

from app import errors
from app.errors import (
    AdapterConflict,
    AdapterError,
    AdapterNotFound,
    AdapterRejected,
    AdapterTooLarge,
    ContextWindowExceeded,
    EngineDied,
    EngineStarting,
    InvalidRequest,
    KeyRequired,
    NotPermitted,
    QuantizationFailed,
    ServerDraining,
    ServerFull,
    SoftserveError,
    StartError,
    TemplateError,
    Unavailable,
)
from app.http.errors import INTERNAL_MESSAGE, STATUSES, describe, error_body

INTERNAL = {"error": {"type": "internal_error", "message": INTERNAL_MESSAGE, "param": None}}


@pytest.mark.parametrize(
    ("kind", "status", "name"),
    [
        (InvalidRequest, 422, "invalid_request"),
        (ContextWindowExceeded, 422, "context_window_exceeded"),
        (KeyRequired, 401, "key_required"),
        (NotPermitted, 403, "not_permitted"),
        (AdapterNotFound, 404, "adapter_not_found"),
        (AdapterConflict, 409, "adapter_conflict"),
        (AdapterTooLarge, 413, "adapter_too_large"),
        (AdapterRejected, 422, "adapter_rejected"),
        (ServerFull, 503, "server_full"),
        (EngineStarting, 503, "engine_starting"),
        (ServerDraining, 503, "server_draining"),
        (EngineDied, 503, "engine_died"),
    ],
)
def test_table(kind: type[SoftserveError], status: int, name: str) -> None:
    body = {"error": {"type": name, "message": "do this", "param": "n"}}
    assert describe(kind("do this", param="n")) == (status, body)


@pytest.mark.parametrize(
    "error", [ValueError("secret"), StartError("secret"), SoftserveError("secret")]
)
def test_of_an_unexpected_error_nothing_is_told(error: Exception) -> None:
    assert describe(error) == (500, INTERNAL)


def _all(kind: type[SoftserveError]) -> Iterator[type[SoftserveError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _all(child)


def test_every_error_that_a_request_can_meet_has_a_status() -> None:
    abstract = {Unavailable, AdapterError, TemplateError}
    of_commands = {StartError, *_all(StartError), QuantizationFailed}
    assert set(_all(SoftserveError)) - abstract - of_commands == set(STATUSES)


def test_errors_have_sentences_of_their_own() -> None:
    public = [kind for name, kind in vars(errors).items() if isinstance(kind, type)]
    assert len({kind.__doc__ for kind in public}) == len(public)


def test_a_body_can_always_be_sent() -> None:
    body = error_body("invalid_request", "there is no field \ud800", "\ud800")
    assert body == {
        "error": {"type": "invalid_request", "message": "there is no field ?", "param": "?"}
    }
