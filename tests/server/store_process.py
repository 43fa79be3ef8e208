"""A server process with the real store and a fake engine: it starts in a moment, to be killed.

For what happens on disk, where the engine plays no part. Each process is a fork of one that has
imported the server.
"""

import multiprocessing
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from app import server
from app.settings import Settings
from app.telemetry.logs import configure_logging
from tests.fake_engine import FakeEngine

START_TIMEOUT_SECONDS = 60.0
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class StoreProcess:
    """The server on the store and the watched folders below `folder`."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        own = {name: folder / name for name in ("adapter_store", "adapter_dir", "template_dir")}
        self.folder = folder
        self.process = FORKS.Process(target=_serve, args=(Settings(port=port, **own | settings),))
        self.url = f"http://127.0.0.1:{port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60.0)

    def wait_until_ready(self) -> None:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(base_url=self.url, transport=transport) as client:
            deadline = time.monotonic() + START_TIMEOUT_SECONDS
            while client.get("/health/ready").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def serving_store(folder: Path, **settings: Any) -> Iterator[StoreProcess]:
    """One that is ready, and killed in the end if it is still there."""
    server = StoreProcess(folder, **settings)
    server.process.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()


def _serve(settings: Settings) -> None:
    configure_logging("json", "warning")
    with patch.object(server, "VLLMEngine", lambda settings: FakeEngine()):
        sys.exit(server.serve(settings))
