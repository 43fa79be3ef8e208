"""What surrounds every request: its id, its log line, its size limit, and the last resort."""

import asyncio
import re
import time
import uuid

import structlog
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.caller import NOBODY
from app.http.ending import record_end, traced
from app.http.errors import describe
from app.http.media_types import FORM, media_type
from app.telemetry.metrics import Metrics
from softserve.schema.keys import without_secrets

log = structlog.get_logger(__name__)

REQUEST_ID_HEADER = "x-request-id"
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Of a body that is not wanted.
MAX_DISCARDED_BYTES = 1 << 30
LINGER_SECONDS = 30.0


class RequestContext:
    """Give a request its id, record how it ended, and answer with a 500 what nothing caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        is_usable = VALID_REQUEST_ID.fullmatch(given) and given == without_secrets(given)
        request_id = given if is_usable else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["caller"] = NOBODY
        status: int | None = None
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            traced(scope) as span,
        ):
            try:
                await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                log.info("client disconnected")
            except Exception as error:
                log.exception("request failed")
                if status is None:
                    code, body = describe(error, scope["path"])
                    state["error_type"] = body["error"]["type"]
                    await JSONResponse(body, code)(scope, receive, send_with_id)
            finally:
                record_end(self.metrics, span, scope, status, started)


class BodyLimit:
    """Refuse a body over the limit, by its declared length or once too much of it has come.

    A form that is PUT, which is how files are sent, has a limit of its own: it is kept on disk.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_form_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_form_bytes = max_form_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        num_received = 0
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        is_upload = media_type(headers) == FORM and scope["method"] == "PUT"
        max_bytes = self.max_form_bytes if is_upload else self.max_body_bytes

        async def receive_limited() -> Message:
            nonlocal num_received
            if declared.isdigit() and int(declared) > max_bytes:
                raise _too_large(max_bytes)
            message = await receive()
            if message["type"] == "http.request":
                num_received += len(message.get("body", b""))
                if num_received > max_bytes:
                    raise _too_large(max_bytes)
            return message

        await self.app(scope, receive_limited, send)


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"the body is over the limit of {max_bytes:,} bytes: send less at once"
    )


class Lingering:
    """After an answer that did not wait for the body, read the rest of it and throw it away.

    A client that reads only when it has sent everything would see a broken connection in place of
    the answer. One that reads earlier has it at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if not ("content-length" in headers or "transfer-encoding" in headers):
            await self.app(scope, receive, send)
            return
        # A client that waits to be asked for its body sends none after an answer.
        is_coming = "expect" not in headers

        async def receive_and_note() -> Message:
            nonlocal is_coming
            message = await receive()
            is_coming = message.get("more_body", False)
            return message

        async def send_and_linger(message: Message) -> None:
            if is_coming and _is_last(message):
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, receive_and_note, send_and_linger)


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _discard(receive: Receive) -> None:
    num_discarded, is_coming = 0, True
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while is_coming and num_discarded <= MAX_DISCARDED_BYTES:
                message = await receive()
                num_discarded += len(message.get("body", b""))
                is_coming = message.get("more_body", False)
    except TimeoutError:
        pass


class AbsoluteForm:
    """Take a request for `http://host/path`, as clients send it to a proxy, for one for the path.

    A server has to (RFC 9112, section 3.2.2); h11 leaves it to whoever reads the target.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(("http://", "https://")):
            path, raw_path = scope["path"], scope["raw_path"]
            scope = {
                **scope,
                "path": "/" + "".join(path.split("/", 3)[3:]),
                "raw_path": b"/" + b"".join(raw_path.split(b"/", 3)[3:]),
            }
        await self.app(scope, receive, send)
