"""From error to status: the one table, and the one body of every error."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from app.errors import (
    AdapterConflict,
    AdapterNotFound,
    AdapterRejected,
    AdapterTooLarge,
    ContextWindowExceeded,
    EngineDied,
    EngineStalled,
    EngineStarting,
    InvalidRequest,
    KeyConflict,
    KeyNotFound,
    KeyRequired,
    NotPermitted,
    OriginUnavailable,
    QuotaExceeded,
    RequestTimedOut,
    ServerDraining,
    ServerFull,
    SoftserveError,
    StoreUnavailable,
    TemplateConflict,
    TemplateNotFound,
    TemplateRejected,
    TryAgainLater,
)
from app.http.media_types import media_type
from softserve.schema.generation import GenerateBody
from softserve.schema.icl import IclGenerateBody, RenderBody
from softserve.schema.inspection import InspectBody
from softserve.schema.keys import without_secrets
from softserve.schema.openai import ChatBody, CompletionsBody, ResponsesBody

STATUSES: dict[type[SoftserveError], tuple[int, str]] = {
    InvalidRequest: (422, "invalid_request"),
    ContextWindowExceeded: (422, "context_window_exceeded"),
    KeyRequired: (401, "key_required"),
    NotPermitted: (403, "not_permitted"),
    KeyNotFound: (404, "key_not_found"),
    KeyConflict: (409, "key_conflict"),
    AdapterNotFound: (404, "adapter_not_found"),
    AdapterConflict: (409, "adapter_conflict"),
    AdapterTooLarge: (413, "adapter_too_large"),
    AdapterRejected: (422, "adapter_rejected"),
    TemplateNotFound: (404, "template_not_found"),
    TemplateConflict: (409, "template_conflict"),
    TemplateRejected: (422, "template_rejected"),
    QuotaExceeded: (429, "quota_exceeded"),
    ServerFull: (503, "server_full"),
    RequestTimedOut: (503, "request_timed_out"),
    EngineStarting: (503, "engine_starting"),
    ServerDraining: (503, "server_draining"),
    StoreUnavailable: (503, "store_unavailable"),
    OriginUnavailable: (503, "origin_unavailable"),
    EngineStalled: (503, "engine_stalled"),
    EngineDied: (503, "engine_died"),
}
HTTP_TYPES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
HTTP_MESSAGES = {
    400: "the body cannot be read as JSON: send one object in UTF-8, not compressed, not too deep",
    404: "there is nothing at {path}: GET /docs lists what there is",
    405: "{path} does not take {method}: GET /docs lists what it takes",
}
INTERNAL_MESSAGE = (
    "the server failed on this request: its log has the reason, under the id in x-request-id"
)
NOT_AN_OBJECT = "the body must be a JSON object, sent with content-type: application/json"
NOT_SENT_AS_JSON = (
    "the body was sent {as_what}, and JSON is wanted: add the header content-type: "
    "application/json (curl -H 'content-type: application/json')"
)
FIELDS = {
    "/generate": list(GenerateBody.model_fields),
    "/v1/completions": list(CompletionsBody.model_fields),
    "/v1/chat/completions": list(ChatBody.model_fields),
    "/v1/responses": list(ResponsesBody.model_fields),
    "/inspect": list(InspectBody.model_fields),
    "/icl/generate": list(IclGenerateBody.model_fields),
    "/icl/render": list(RenderBody.model_fields),
}
MAX_MESSAGES = 3
MAX_QUOTED_LENGTH = 80

# What speaks OpenAI's protocol, whose clients know errors by status and `code`.
OPENAI_PATHS = ("/v1/", "/tokenize", "/detokenize")
OPENAI_CODES = {
    "adapter_not_found": "model_not_found",
    "context_window_exceeded": "context_length_exceeded",
    "key_required": "invalid_api_key",
    "quota_exceeded": "rate_limit_exceeded",
}
# What is a field of its own elsewhere.
OPENAI_PARAMS = {"adapter": "model", "soft_prompt": "model"}

ErrorBody = dict[str, dict[str, str | None]]


def error_body(type: str, message: str, param: str | None = None) -> ErrorBody:
    """The one body of every error. What it quotes of a request may be anything, a key included."""
    return {
        "error": {
            "type": type,
            "message": _sendable(message),
            "param": None if param is None else _sendable(param),
        }
    }


def _sendable(text: str) -> str:
    return without_secrets(text.encode("utf-8", errors="replace").decode("utf-8"))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_QUOTED_LENGTH else text[:MAX_QUOTED_LENGTH] + "…"


def describe(error: Exception, path: str) -> tuple[int, ErrorBody]:
    """The status and the body of any error; of an unexpected one nothing is told."""
    return _in_the_words_of(path, *_described(error))


def _in_the_words_of(path: str, status: int, body: ErrorBody) -> tuple[int, ErrorBody]:
    """The same for the clients of a path."""
    if not path.startswith(OPENAI_PATHS):
        return status, body
    error = body["error"]
    kind, param = error["type"] or "", error["param"] or ""
    param_there = OPENAI_PARAMS.get(param, error["param"])
    told = {**error, "param": param_there, "code": OPENAI_CODES.get(kind, kind)}
    return 400 if status == 422 else status, {"error": told}


def _described(error: Exception) -> tuple[int, ErrorBody]:
    known = next((kind for kind in type(error).__mro__ if kind in STATUSES), None)
    if isinstance(error, SoftserveError) and known is not None:
        status, name = STATUSES[known]
        return status, error_body(name, error.message, error.param)
    return 500, error_body("internal_error", INTERNAL_MESSAGE)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of the app with the one body."""

    @app.exception_handler(SoftserveError)
    async def softserve_error(request: Request, error: SoftserveError) -> JSONResponse:
        return refusal_of(request, error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        status = 400 if errors[0]["type"] == "json_invalid" else 422
        # FastAPI has not parsed a body that came under another name.
        if isinstance(errors[0].get("input"), bytes):
            sent_as = media_type(request.headers)
            as_what = f"as {_shortened(sent_as)}" if sent_as else "without a content-type"
            body = error_body("invalid_request", NOT_SENT_AS_JSON.format(as_what=as_what))
        else:
            body = _describe_validation(errors, FIELDS.get(request.url.path, []))
        return _told(request, body, status)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = error.detail
        if (template := HTTP_MESSAGES.get(error.status_code)) is not None:
            message = template.format(path=request.url.path, method=request.method)
        name = HTTP_TYPES.get(error.status_code, "invalid_request")
        headers = error.headers
        if error.status_code == 405:
            headers = {"allow": _allowed_methods(request)}
        return _told(request, error_body(name, message), error.status_code, headers)


def refusal_of(request: Request, error: SoftserveError) -> JSONResponse:
    """The answer to a request that is refused."""
    status, body = _described(error)
    headers = None
    if isinstance(error, TryAgainLater):
        headers = {"retry-after": str(max(1, ceil(error.retry_after_seconds)))}
    elif isinstance(error, KeyRequired):
        headers = {"www-authenticate": "Bearer"}
    return _told(request, body, status, headers)


def _told(
    request: Request, body: ErrorBody, status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer; the log and the metrics hear of the error's type."""
    request.state.error_type = body["error"]["type"]
    status, body = _in_the_words_of(request.url.path, status, body)
    return JSONResponse(body, status, headers)


def _allowed_methods(request: Request) -> str:
    """Those of every route of the path; Starlette knows only the first."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in matching for method in route.methods or ()}))


def _describe_validation(
    errors: Iterable[Mapping[str, Any]], known_fields: Sequence[str]
) -> ErrorBody:
    described = [_describe_field(error, known_fields) for error in errors]
    messages = [message for message, _ in described[:MAX_MESSAGES]]
    if len(described) > MAX_MESSAGES:
        messages.append(f"and {len(described) - MAX_MESSAGES} more")
    return error_body("invalid_request", "; ".join(messages), described[0][1])


def _describe_field(
    error: Mapping[str, Any], known_fields: Sequence[str]
) -> tuple[str, str | None]:
    """A sentence for one of pydantic's errors, and the field that it is about."""
    kind, location = error["type"], [part for part in error["loc"][1:] if not _is_tag(part)]
    field = _shortened(str(location[0])) if location else None
    below = "".join(f"[{_shortened(str(part))}]" for part in location[1:])
    where = field if field is None else f"{field}{below}"
    if kind == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']}", None
    if kind == "string_unicode":
        # The name of a field: such a value is refused as `not_text`.
        field = where = _shortened(error["input"])
        kind = "extra_forbidden"
    if field is None:
        return NOT_AN_OBJECT, None
    match kind:
        case "missing":
            return f"{where} is missing: it is required", field
        case "extra_forbidden":
            return f"there is no field {where}{_suggestion(field, known_fields)}", field
        case "string_too_short" | "too_short":
            return f"{where} is empty: write something in it, or leave it out", field
        case "not_text":
            return f"{where}: {error['msg']}", field
        case _:
            reason = error["msg"].replace("Input should be", "must be")
            return f"{where} {reason}{_quoted(error['input'])}", field


def _is_tag(part: str | int) -> bool:
    """What tells the alternatives of a field apart, and is no field."""
    return isinstance(part, str) and part.startswith("<")


def _suggestion(field: str, known_fields: Sequence[str]) -> str:
    close = difflib.get_close_matches(field, known_fields, n=1)
    return f": did you mean {close[0]}?" if close else ": GET /docs lists the fields"


def _quoted(value: Any) -> str:
    """The value at fault, if it is small enough to help."""
    if (
        isinstance(value, str | int | float | bool)
        and len(shown := repr(value)) <= MAX_QUOTED_LENGTH
    ):
        return f", not {shown}"
    return ""
