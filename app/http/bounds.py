"""How much of a request is read: what is over a bound is refused before it costs more."""

import h11

from app.http.errors import ErrorBody, error_body

MAX_HEADER_BYTES = 65_536
MAX_HEADERS = 128
MAX_TARGET_BYTES = 8192
# A chunk costs as much to read as some hundred bytes do.
MAX_SMALL_CHUNKS = 10_000
MIN_CHUNK_BYTES = 64

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
TOO_MANY_HEADERS = error_body(
    "headers_too_large", f"there are more than {MAX_HEADERS} headers: send fewer"
)
URI_TOO_LONG = error_body(
    "uri_too_long",
    f"the URL is over the limit of {MAX_TARGET_BYTES:,} bytes: send what is long in the body",
)
TOO_MANY_CHUNKS = error_body(
    "invalid_request",
    f"the body comes in too many chunks of less than {MIN_CHUNK_BYTES} bytes: send larger ones, or "
    "all of it with a content-length",
)


class Refusal(h11.RemoteProtocolError):
    """A request that can be read, but costs too much to be."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        super().__init__(f"refused with {status}", error_status_hint=status)
        self.status = status
        self.body = body


class BoundedConnection(h11.Connection):
    """h11's reading of a connection. It bounds bytes itself; here is what costs time."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self.is_head_request = False
        self._num_chunks = 0
        self._num_body_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data):
            self._num_chunks += event.chunk_start
            self._num_body_bytes += len(event.data)
            if self._num_chunks > MAX_SMALL_CHUNKS + self._num_body_bytes / MIN_CHUNK_BYTES:
                raise Refusal(400, TOO_MANY_CHUNKS)
        return event

    def _begin(self, request: h11.Request) -> None:
        self.is_head_request = request.method == b"HEAD"
        self._num_chunks = self._num_body_bytes = 0
        if len(request.target) > MAX_TARGET_BYTES:
            raise Refusal(414, URI_TOO_LONG)
        if len(request.headers) > MAX_HEADERS:
            raise Refusal(431, TOO_MANY_HEADERS)
