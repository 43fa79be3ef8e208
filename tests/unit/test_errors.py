"""The one table from error to status, and the one body."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from app import errors
from app.errors import (
    AdapterConflict,
    AdapterError,
    AdapterNotFound,
    AdapterRejected,
    AdapterTooLarge,
    ContextWindowExceeded,
    EngineDied,
    EngineStalled,
    EngineStarting,
    InvalidRequest,
    KeyRequired,
    NotPermitted,
    OriginUnavailable,
    QuantizationFailed,
    QuotaExceeded,
    ReferenceFailed,
    ServerDraining,
    ServerFull,
    SoftserveError,
    StartError,
    StoreUnavailable,
    TemplateError,
    TryAgainLater,
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
        (EngineStalled, 503, "engine_stalled"),
        (EngineStarting, 503, "engine_starting"),
        (ServerDraining, 503, "server_draining"),
        (StoreUnavailable, 503, "store_unavailable"),
        (OriginUnavailable, 503, "origin_unavailable"),
        (EngineDied, 503, "engine_died"),
    ],
)
def test_table(kind: type[SoftserveError], status: int, name: str) -> None:
    body = {"error": {"type": name, "message": "do this", "param": "n"}}
    assert describe(kind("do this", param="n"), "/generate") == (status, body)


@pytest.mark.parametrize(
    "error", [ValueError("secret"), StartError("secret"), SoftserveError("secret")]
)
def test_of_an_unexpected_error_nothing_is_told(error: Exception) -> None:
    assert describe(error, "/generate") == (500, INTERNAL)


def _all(kind: type[SoftserveError]) -> Iterator[type[SoftserveError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("app."):
            yield child
            yield from _all(child)


ABSTRACT = {TryAgainLater, Unavailable, AdapterError, TemplateError}
OF_COMMANDS = {StartError, *_all(StartError), QuantizationFailed, ReferenceFailed}


def test_every_error_that_a_request_can_meet_has_a_status() -> None:
    assert set(_all(SoftserveError)) - ABSTRACT - OF_COMMANDS == set(STATUSES)


@pytest.mark.parametrize("name", sorted(kind.__name__ for kind in (*ABSTRACT, SoftserveError)))
def test_what_has_no_status_is_raised_nowhere(name: str) -> None:
    made = re.compile(rf"(?<!class )\b{name}\(|raise {name}\b")
    sources = {file: file.read_text() for file in Path(app.__file__).parent.rglob("*.py")}

    assert sources
    assert [file for file, source in sources.items() if made.search(source)] == []


def test_a_special_case_has_the_status_of_what_it_is_a_case_of() -> None:
    class EngineBusy(ServerFull):
        """One without a row of its own."""

    assert describe(EngineBusy("do this"), "/") == describe(ServerFull("do this"), "/")


def test_errors_have_sentences_of_their_own() -> None:
    public = [kind for name, kind in vars(errors).items() if isinstance(kind, type)]
    assert len({kind.__doc__ for kind in public}) == len(public)


def test_a_body_can_always_be_sent() -> None:
    body = error_body("invalid_request", "there is no field \ud800", "\ud800")
    assert body == {
        "error": {"type": "invalid_request", "message": "there is no field ?", "param": "?"}
    }


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models/a", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (InvalidRequest("do this", param="n"), 400, "invalid_request", "n"),
        (ContextWindowExceeded("do this"), 400, "context_length_exceeded", None),
        (KeyRequired("do this"), 401, "invalid_api_key", None),
        (AdapterNotFound("do this", param="adapter"), 404, "model_not_found", "model"),
        (QuotaExceeded("do this"), 429, "rate_limit_exceeded", None),
        (ServerFull("do this"), 503, "server_full", None),
        (ValueError("secret"), 500, "internal_error", None),
    ],
)
def test_the_clients_of_openai_are_told_in_their_words(
    error: Exception, path: str, status: int, code: str, param: str | None
) -> None:
    told, body = describe(error, path)

    assert (told, body["error"]["code"], body["error"]["param"]) == (status, code, param)
    assert body["error"]["message"] in {"do this", INTERNAL["error"]["message"]}
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
