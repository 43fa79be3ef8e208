"""HTTP/1.1 on the socket: uvicorn's with h11, and its refusals in the one error body.

h11, not uvicorn's httptools, because it keeps the body of a request that offers an upgrade, ends a
stream to an HTTP/1.0 client by closing, and bounds what it holds of a request's headers.
"""

import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from app.http.errors import ErrorBody, error_body

MAX_HEADER_BYTES = 65_536
# How long a client that is refused may take to read that.
LINGER_SECONDS = 5.0

NOT_HTTP = error_body(
    "invalid_request",
    "this is not an HTTP/1.1 request that can be read: check its first line (what is not ASCII is "
    "percent-encoded), that it has a host header, and its content-length or chunks; for https, put "
    "a proxy in front",
)
HEADERS_TOO_LARGE = error_body(
    "headers_too_large",
    f"the headers are over the limit of {MAX_HEADER_BYTES:,} bytes: send fewer or shorter ones",
)


class Protocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_refused = False

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            super().data_received(data)

    def _should_upgrade(self) -> bool:
        # An offer may be ignored (RFC 9110, section 7.8). Java's client makes one of h2c with every
        # request.
        return False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Whether the rest of the body still comes, or the next request, nobody can tell.
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 could not read, then wait a little for the client to read that."""
        self._is_refused = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = sys.exception()
            if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
                self._send(431, HEADERS_TOO_LARGE)
            else:
                self._send(400, NOT_HTTP)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _send(self, status: int, body: ErrorBody) -> None:
        content = json.dumps(body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
