"""Server-sent events, from the bytes of a stream to its events."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager

import httpx
from pydantic import TypeAdapter

from softserve.client.errors import Interrupted, refusal
from softserve.schema.errors import ErrorAnswer
from softserve.schema.events import DONE, ERROR, CompletionEnd, Piece, StreamEvent

Event = Piece | CompletionEnd
# A context in which the errors of the libraries below become a `ClientError`.
Told = Callable[[], AbstractContextManager[None]]

_EVENT: TypeAdapter[Event] = TypeAdapter(StreamEvent)


class EventReader:
    """Makes events from bytes, however these are cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that are whole now. Raises `Refused` where the server tells of a failure."""
        # Only a line feed ends a line: a text may hold U+2028 and the like.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b": ")
            match field:
                case b"event":
                    self._name = value.decode()
                case b"data" if self._name == ERROR:
                    raise refusal(ErrorAnswer.model_validate_json(value).error)
                case b"data" if value == DONE.encode():
                    self._done = True
                case b"data":
                    yield _EVENT.validate_json(value)

    def end(self) -> None:
        """Raises `Interrupted` where the end has not come."""
        if not self._done:
            raise Interrupted("the stream broke off before its end: what came is not all")


class Stream:
    """The events of a generation as they come, pieces and ends of completions.

    It is there within `with`; leaving that ends the generation on the server.
    """

    def __init__(self, response: httpx.Response, told: Told) -> None:
        self._response = response
        self._told = told
        self._reader = EventReader()

    def __iter__(self) -> Iterator[Event]:
        with self._told():
            for chunk in self._response.iter_bytes():
                yield from self._reader.feed(chunk)
            self._reader.end()


class AsyncStream:
    """The same, for `async with` and `async for`."""

    def __init__(self, response: httpx.Response, told: Told) -> None:
        self._response = response
        self._told = told
        self._reader = EventReader()

    async def __aiter__(self) -> AsyncIterator[Event]:
        with self._told():
            async for chunk in self._response.aiter_bytes():
                for event in self._reader.feed(chunk):
                    yield event
            self._reader.end()
