"""HTTP/1.1 on the socket: uvicorn's with h11, and patience with clients that has bounds.

h11, not uvicorn's httptools, because it keeps the body of a request that offers an upgrade, ends a
stream to an HTTP/1.0 client by closing, and bounds what it holds of a request's headers.

A client owes the server the rest of a head or of a body, or nothing; the server owes it an answer,
which it has to take. Whoever keeps the other waiting for too long is told so, where that can be
told, and its connection is closed. No other is harmed.
"""

import asyncio
import json
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from app.http.bounds import HEADERS_TOO_LARGE, NOT_HTTP, BoundedConnection, Refusal
from app.http.connections import Connections, Full, origin_of
from app.http.errors import ErrorBody, error_body

# In each period of the body's timeout, unless it ends there.
MIN_BODY_BYTES = 16_384
# How long a client that is refused may take to read that.
LINGER_SECONDS = 5.0
# How many may do so beyond the bound of connections; others find theirs closed.
MAX_TURNED_AWAY = 128
# Of Linux' struct tcp_info, until tcpi_bytes_acked; the first byte is tcpi_state.
TCP_INFO = struct.Struct("=B119xQ")
TCP_CLOSE = 7
# Asks a client that may have left whether it has. Its machine then resets the connection, mostly
# within this time.
RESET_SECONDS = 0.1
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
RETRY_LATER = frozenset({429, 503})
RETRY_AFTER_SECONDS = 5

HEAD_TOO_LATE = error_body(
    "request_too_slow", "the headers did not come in time: send them at once, and then the body"
)
BODY_TOO_LATE = error_body(
    "request_too_slow",
    "the body stopped coming, or came too slowly: send it without pauses, or over a faster line",
)
TOO_MANY_CONNECTIONS: dict[Full, tuple[int, ErrorBody]] = {
    "server": (
        503,
        error_body(
            "too_many_connections",
            "as many clients are connected as the server takes: try again later, and send many "
            "requests over one connection",
        ),
    ),
    "address": (
        429,
        error_body(
            "too_many_connections",
            "this address has as many connections as it may have: close some, and send many "
            "requests over one",
        ),
    ),
}

# The part of a request of which the client has yet to send the rest.
Owed = Literal["head", "body"]


@dataclass(frozen=True)
class Patience:
    """How long a client may take, in seconds."""

    header_timeout_seconds: float
    body_timeout_seconds: float
    write_timeout_seconds: float


class Protocol(H11Protocol):
    """One connection."""

    conn: BoundedConnection

    def __init__(
        self,
        allowed: Connections,
        patience: Patience,
        on_refusal: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.conn = BoundedConnection()
        self._allowed = allowed
        self._patience = patience
        self._on_refusal = on_refusal
        self._origin: str | None = None
        self._is_refused = False
        self._has_said_all = False
        self._owed: Owed | None = None
        self._owed_timer: asyncio.TimerHandle | None = None
        # Since the period of the body's timeout began: the bytes, and whether it was the client
        # that had to wait.
        self._num_received = 0
        self._client_waited = False
        # How far the client is with taking an answer that waits for it, and since when.
        self._taken: tuple[int, int] | None = None
        self._taken_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        origin = origin_of(self.client[0]) if self.client else ""
        full = self._allowed.enter(origin)
        if full is None:
            self._origin = origin
            self._expect("head")
        elif len(self._allowed.turned_away) < MAX_TURNED_AWAY:
            self._allowed.turned_away.add(self)
            self._refuse(*TOO_MANY_CONNECTIONS[full])
        else:
            self._on_refusal("too_many_connections")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._expect(None)
        self._allowed.turned_away.discard(self)
        if self._origin is not None:
            self._allowed.leave(self._origin)

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            self._num_received += len(data)
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open for an answer, its client having no more to say.

        A client that has left looks the same, until something is sent to it.
        """
        awaits_answer = (
            not self._is_refused
            and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
            and not self.cycle.response_complete
            and self.cycle.scope["http_version"] == "1.1"
        )
        if awaits_answer and not self.cycle.response_started:
            self.transport.write(PROCESSING)
            self.loop.call_later(RESET_SECONDS, self.look_after)
        self._has_said_all = awaits_answer
        return awaits_answer

    def handle_events(self) -> None:
        super().handle_events()
        self._client_waited |= self._client_waits
        self._expect(self._what_the_client_owes())

    def on_response_complete(self) -> None:
        # Whether the rest of the body still comes, or the next request, nobody can tell.
        is_lost = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()
        # The next request may have been there already.
        is_last = self._has_said_all and self.conn.their_state is not h11.DONE
        if is_lost or is_last:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        # An offer may be ignored (RFC 9110, section 7.8). Java's client makes one of h2c with every
        # request.
        return False

    # What the client owes, and how long it may take.

    def _what_the_client_owes(self) -> Owed | None:
        state = self.conn.their_state
        if self._is_refused:
            return None
        # Between two requests it owes nothing: uvicorn's timeout of keep-alive runs.
        if state is h11.IDLE and (self._owed == "head" or self.conn.trailing_data[0]):
            return "head"
        return "body" if state is h11.SEND_BODY else None

    def _expect(self, owed: Owed | None) -> None:
        if owed == self._owed:
            return
        self._owed = owed
        if self._owed_timer is not None:
            self._owed_timer.cancel()
            self._owed_timer = None
        if owed == "head":
            self._owed_timer = self.loop.call_later(
                self._patience.header_timeout_seconds, self._end_of_head_timeout
            )
        elif owed == "body":
            self._begin_body_period()

    def _end_of_head_timeout(self) -> None:
        # A browser opens connections ahead of its requests: what says nothing is told nothing.
        if self.conn.trailing_data[0]:
            self._refuse(408, HEAD_TOO_LATE)
        else:
            self.transport.close()

    def _begin_body_period(self) -> None:
        self._num_received = 0
        self._client_waited = self._client_waits
        self._owed_timer = self.loop.call_later(
            self._patience.body_timeout_seconds, self._end_of_body_period
        )

    def _end_of_body_period(self) -> None:
        is_late = self._num_received < MIN_BODY_BYTES
        if is_late and not (self._client_waited or self._client_waits):
            self._refuse(408, BODY_TOO_LATE)
        else:
            self._begin_body_period()

    @property
    def _client_waits(self) -> bool:
        """Whether the server has yet to ask for the body, or for more of it."""
        asked = self.cycle is None or not self.cycle.waiting_for_100_continue
        return self.flow.read_paused or not asked

    # What the server owes, and how long the client may leave it.

    def look_after(self) -> None:
        """End the connection if its client has gone, or takes nothing of what waits for it.

        The server calls it every second.
        """
        if self not in self.connections:
            return
        num_waiting = self.transport.get_write_buffer_size()
        if not (num_waiting or self._has_said_all):
            self._taken = None
            return
        state, num_acknowledged = self._tcp_info()
        taken, now = (num_acknowledged, num_waiting), self.loop.time()
        if state == TCP_CLOSE:
            self.transport.abort()
        elif taken != self._taken or not num_waiting:
            self._taken, self._taken_at = taken, now
        elif now - self._taken_at >= self._patience.write_timeout_seconds:
            self._on_refusal("write_timeout")
            self.transport.abort()

    def _tcp_info(self) -> tuple[int, int]:
        """The connection's state, and the bytes that have arrived; zeros if not on Linux.

        What waits here does not tell: the kernel makes room for more of it in large steps, in which
        a slow client reads for minutes.
        """
        if not hasattr(socket, "TCP_INFO"):
            return 0, 0
        connection = self.transport.get_extra_info("socket")
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        state, num_acknowledged = TCP_INFO.unpack(info)
        return state, num_acknowledged

    # Refusals.

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 could not read."""
        error = sys.exception()
        if isinstance(error, Refusal):
            self._refuse(error.status, error.body)
        elif isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(431, HEADERS_TOO_LARGE)
        else:
            self._refuse(400, NOT_HTTP)

    def _refuse(self, status: int, body: ErrorBody) -> None:
        """Say why, unless an answer has begun; then wait a little for the client to read that."""
        self._is_refused = True
        self._expect(None)
        if status != 400:
            self._on_refusal(str(body["error"]["type"]))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(status, body)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        # What still comes is thrown away: closed on it, the client would lose what it was told.
        self.flow.resume_reading()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _send(self, status: int, body: ErrorBody) -> None:
        content = json.dumps(body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        if status in RETRY_LATER:
            headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        for event in (
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=b"" if self.conn.is_head_request else content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
