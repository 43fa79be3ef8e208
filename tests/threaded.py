"""Small servers, beside the test that asks them: the standard library's, and uvicorn's."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from typing import Any, TypeVar

import uvicorn

S = TypeVar("S", bound=HTTPServer)


@contextmanager
def in_thread(server: S) -> Iterator[S]:
    """A server that serves meanwhile, and is closed in the end, whatever happens."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def app_in_thread(app: Any) -> Iterator[str]:
    """The URL of an ASGI application, which is served meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        try:
            # A request waits on the listening socket until the application has started.
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
