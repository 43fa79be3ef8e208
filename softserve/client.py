"""The command line's side of the HTTP interface."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from softserve.schema.errors import ErrorAnswer

Answer = TypeVar("Answer", bound=BaseModel)

CONNECT_TIMEOUT_SECONDS = 10.0
TIMEOUT = httpx.Timeout(120.0, connect=CONNECT_TIMEOUT_SECONDS)
# A gigabyte takes its time to send and to load, and so do requests to end: only the user knows how
# long is too long.
PATIENT = httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS)


class ClientError(Exception):
    """The server cannot be reached, or refuses: a sentence for the terminal.

    `type` is the server's name for the error, where it has answered with one.
    """

    def __init__(self, message: str, *, type: str | None = None) -> None:
        super().__init__(message)
        self.type = type


class Client:
    """A running server. Every method returns the parsed answer, or raises `ClientError`."""

    def __init__(self, url: str, admin_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = _authorization(admin_key) if admin_key else {}

    def get(self, path: str, answer_type: type[Answer]) -> Answer:
        return self._parsed(self._send("GET", path), answer_type)

    def post(
        self,
        path: str,
        body: dict[str, Any],
        answer_type: type[Answer],
        timeout: httpx.Timeout = TIMEOUT,
    ) -> Answer:
        response = self._send("POST", path, json=body, timeout=timeout)
        return self._parsed(response, answer_type)

    def put(self, path: str, body: dict[str, Any], answer_type: type[Answer]) -> Answer:
        return self._parsed(self._send("PUT", path, json=body, timeout=PATIENT), answer_type)

    def upload(
        self,
        path: str,
        files: Mapping[str, BinaryIO],
        fields: Mapping[str, str],
        answer_type: type[Answer],
        on_sent: Callable[[], object],
    ) -> Answer:
        """PUT files by their names, each read as it is sent. `on_sent` hears when all is sent."""

        def trace(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith(".send_request_body.complete"):
                on_sent()

        response = self._send(
            "PUT",
            path,
            files=[("file", named) for named in files.items()],
            data=fields,
            timeout=PATIENT,
            extensions={"trace": trace},
        )
        return self._parsed(response, answer_type)

    def delete(self, path: str) -> None:
        self._send("DELETE", path, timeout=PATIENT)

    def _send(
        self, method: str, path: str, *, timeout: httpx.Timeout = TIMEOUT, **content: Any
    ) -> httpx.Response:
        """The answer of a server that did what it was asked."""
        with (
            _told_as_sentences(self._url),
            httpx.Client(headers=self._headers, timeout=timeout) as client,
        ):
            response = client.request(method, self._url + path, **content)
        _refuse(response, self._url)
        return response

    def _parsed(self, response: httpx.Response, answer_type: type[Answer]) -> Answer:
        return _parsed(response, answer_type, self._url)


class AsyncClient:
    """A running server that is asked many things at once, over connections that are kept."""

    def __init__(self, url: str, max_connections: int) -> None:
        self._url = url.rstrip("/")
        limits = httpx.Limits(max_connections=max_connections)
        with _told_as_sentences(self._url):
            self._client = httpx.AsyncClient(base_url=self._url, timeout=PATIENT, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: dict[str, Any], answer_type: type[Answer]) -> Answer:
        """The parsed answer, or a `ClientError`."""
        with _told_as_sentences(self._url):
            response = await self._client.post(path, json=body)
        _refuse(response, self._url)
        return _parsed(response, answer_type, self._url)


@contextmanager
def _told_as_sentences(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise ClientError(f"{url} is not a URL: write it as http://HOST:PORT") from None
    except httpx.HTTPError as error:
        raise ClientError(
            f"no answer from {url} ({error}): start a server with `softserve serve`, or name "
            "another with --url"
        ) from None


def _refuse(response: httpx.Response, url: str) -> None:
    """Raise the server's own sentence, where it has not done what it was asked."""
    if not response.is_success:
        refusal = _parsed(response, ErrorAnswer, url).error
        raise ClientError(refusal.message, type=refusal.type)


def _parsed(response: httpx.Response, answer_type: type[Answer], url: str) -> Answer:
    try:
        return answer_type.model_validate_json(response.content)
    except ValidationError:
        raise ClientError(f"{url} does not answer as softserve does: check --url") from None


def _authorization(admin_key: str) -> dict[bytes, bytes]:
    # The HTTP library's own error would show the key.
    if not admin_key.isprintable():
        raise ClientError("the admin key has a line break or the like in it: remove it")
    return {b"authorization": f"Bearer {admin_key}".encode()}
