"""One description of an operation, from which both clients have their method.

    class Adapters(Group[Link]):
        @operation
        def show(self, name: str) -> Call[AdapterOut]:
            return Call("GET", f"/adapters/{name}", as_model(AdapterOut))

Of a `Client`, `show(name)` is an `AdapterOut`; of an `AsyncClient`, it is awaited.
"""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from softserve.client.call import Answer, Call
from softserve.client.connection import AsyncConnection, Connection
from softserve.client.streams import AsyncStream, Stream

P = ParamSpec("P")
Link = TypeVar("Link", bound=Connection | AsyncConnection)


class Group(Generic[Link]):
    """Operations that are asked of one server."""

    def __init__(self, connection: Link) -> None:
        self._connection = connection


class operation(Generic[P, Answer]):  # noqa: N801 (a decorator)
    """A method that says what to send, as one that sends it."""

    def __init__(self, call: Callable[Concatenate[Any, P], Call[Answer]]) -> None:
        self._call = call
        update_wrapper(self, call)  # type: ignore[arg-type]

    @overload
    def __get__(self, group: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, group: Group[Connection], owner: Any) -> Callable[P, Answer]: ...
    @overload
    def __get__(
        self, group: Group[AsyncConnection], owner: Any
    ) -> Callable[P, Coroutine[Any, Any, Answer]]: ...
    def __get__(self, group: Group[Any] | None, owner: Any) -> Any:
        if group is None:
            return self

        def send(*args: P.args, **kwargs: P.kwargs) -> Any:
            return group._connection.send(self._call(group, *args, **kwargs))  # noqa: SLF001

        return update_wrapper(send, self._call)


class streaming(Generic[P]):  # noqa: N801 (a decorator)
    """The same, of an answer that comes as a stream, within `with` or `async with`."""

    def __init__(self, call: Callable[Concatenate[Any, P], Call[Any]]) -> None:
        self._call = call
        update_wrapper(self, call)  # type: ignore[arg-type]

    @overload
    def __get__(self, group: None, owner: Any) -> Self: ...
    @overload
    def __get__(
        self, group: Group[Connection], owner: Any
    ) -> Callable[P, AbstractContextManager[Stream]]: ...
    @overload
    def __get__(
        self, group: Group[AsyncConnection], owner: Any
    ) -> Callable[P, AbstractAsyncContextManager[AsyncStream]]: ...
    def __get__(self, group: Group[Any] | None, owner: Any) -> Any:
        if group is None:
            return self

        def stream(*args: P.args, **kwargs: P.kwargs) -> Any:
            return group._connection.stream(self._call(group, *args, **kwargs))  # noqa: SLF001

        return update_wrapper(stream, self._call)
