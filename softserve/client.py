"""The client: one object for a running server, over connections that it keeps.

    with Client("http://127.0.0.1:8000") as client:
        model = client.send(Call("GET", "/info", ModelInfo)).model

    async with AsyncClient("http://127.0.0.1:8000") as client:
        model = (await client.send(Call("GET", "/info", ModelInfo))).model

What is asked is a `Call`, which both send alike. What goes wrong is a `ClientError`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Generic, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from softserve.schema.errors import ErrorAnswer

Answer = TypeVar("Answer", bound=BaseModel)
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

CONNECT_TIMEOUT_SECONDS = 10.0
TIMEOUT_SECONDS = 120.0
# A gigabyte takes its time to send and to load, and so do requests to end: only the user knows how
# long is too long.
PATIENT = None
MAX_CONNECTIONS = 100


class ClientError(Exception):
    """The server cannot be reached, or refuses: a sentence for the terminal.

    `type` is the server's name for the error, where it has answered with one.
    """

    def __init__(self, message: str, *, type: str | None = None) -> None:
        super().__init__(message)
        self.type = type


class Nothing(BaseModel):
    """An answer without content."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One request, and the type of its answer."""

    method: str
    path: str
    answer_type: type[Answer]
    json: Mapping[str, Any] | None = None
    timeout_seconds: float | None = TIMEOUT_SECONDS
    # Of an upload, in httpx's own form.
    files: list[tuple[str, tuple[str, BinaryIO]]] | None = None
    data: Mapping[str, str] | None = None
    extensions: Mapping[str, Any] | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        return http.build_request(
            self.method,
            self.path,
            json=self.json,
            files=self.files,
            data=self.data,
            timeout=httpx.Timeout(self.timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS),
            extensions=self.extensions,
        )


def upload(
    path: str,
    files: Mapping[str, BinaryIO],
    fields: Mapping[str, str],
    answer_type: type[Answer],
    on_sent: Callable[[], object],
) -> Call[Answer]:
    """PUT files by their names, each read as it is sent. `on_sent` hears when all is sent."""

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(".send_request_body.complete"):
            on_sent()

    return Call(
        "PUT",
        path,
        answer_type,
        timeout_seconds=PATIENT,
        files=[("file", named) for named in files.items()],
        data=fields,
        extensions={"trace": trace},
    )


class _Server(Generic[Http]):
    """What both clients are: where the server is, and how its answers read."""

    _url: str
    _http: Http

    def __init__(self, http: type[Http], url: str, key: str | None, max_connections: int) -> None:
        self._url = url.rstrip("/")
        headers = _authorization(key) if key else {}
        limits = httpx.Limits(max_connections=max_connections)
        with self._told_as_sentences():
            self._http = http(base_url=self._url, headers=headers, limits=limits)

    @contextmanager
    def _told_as_sentences(self) -> Iterator[None]:
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ClientError(f"{self._url} is not a URL: write it as http://HOST:PORT") from None
        except httpx.HTTPError as error:
            raise ClientError(
                f"no answer from {self._url} ({error}): start a server with `softserve serve`, or "
                "name another with --url"
            ) from None

    def _read(self, response: httpx.Response, answer_type: type[Answer]) -> Answer:
        """The answer of a server that did what it was asked, else its own sentence."""
        if response.is_success:
            return self._parsed(response, answer_type)
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> ClientError:
        refusal = self._parsed(response, ErrorAnswer).error
        return ClientError(refusal.message, type=refusal.type)

    def _parsed(self, response: httpx.Response, answer_type: type[Answer]) -> Answer:
        try:
            return answer_type.model_validate_json(response.content or b"{}")
        except ValidationError:
            raise ClientError(
                f"{self._url} does not answer as softserve does: check --url"
            ) from None


class Client(_Server[httpx.Client]):
    """A running server."""

    def __init__(
        self, url: str, key: str | None = None, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        super().__init__(httpx.Client, url, key, max_connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def send(self, call: Call[Answer]) -> Answer:
        with self._told_as_sentences():
            response = self._http.send(call.request(self._http))
        return self._read(response, call.answer_type)

    def text(self, path: str) -> str:
        """An answer that is no JSON, as that of `GET /metrics`."""
        with self._told_as_sentences():
            response = self._http.get(path)
        if not response.is_success:
            raise self._refusal(response)
        return response.text


class AsyncClient(_Server[httpx.AsyncClient]):
    """A running server that is asked many things at once."""

    def __init__(
        self, url: str, key: str | None = None, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        super().__init__(httpx.AsyncClient, url, key, max_connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def send(self, call: Call[Answer]) -> Answer:
        with self._told_as_sentences():
            response = await self._http.send(call.request(self._http))
        return self._read(response, call.answer_type)


def _authorization(key: str) -> dict[bytes, bytes]:
    # The HTTP library's own error would show the key.
    if not key.isprintable():
        raise ClientError("the key has a line break or the like in it: remove it")
    return {b"authorization": f"Bearer {key}".encode()}
