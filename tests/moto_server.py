"""An S3 server of the tests' own, on loopback, and a way to it that can be slow, cut or closed."""

import asyncio
import logging
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BUCKET = "softserve"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of one with an empty bucket."""
    from moto.server import ThreadedMotoServer

    # A line for each request is more than anybody reads.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        bucket = f"http://127.0.0.1:{port}/{BUCKET}"
        with urllib.request.urlopen(urllib.request.Request(bucket, method="PUT")) as answer:
            assert answer.status == 200
        yield port
    finally:
        server.stop()


@contextmanager
def asking(port: int) -> Iterator[None]:
    """The environment of whoever has its origin behind that port."""
    ours = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Way:
    """What passes between clients and a server. Its levers may be moved from any thread."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.delay_seconds = 0.0
        self.is_closed = False
        # Requests reach the server, and answers do not come back.
        self.loses_answers = False
        self._target = target
        self._loop: asyncio.AbstractEventLoop
        self._stopped = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        """Nothing passes from now on."""
        self.is_closed = True
        self._loop.call_soon_threadsafe(self._cut)

    def reopen(self) -> None:
        """Everything passes again."""
        self.is_closed = self.loses_answers = False
        self._loop.call_soon_threadsafe(self._cut)

    async def run(self, is_open: threading.Event) -> None:
        """Until it is stopped."""
        self._loop = asyncio.get_running_loop()
        async with await asyncio.start_server(self._connect, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            is_open.set()
            await self._stopped.wait()
            self._cut()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_closed:
            writer.transport.abort()
            return
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self._target)
        both = {writer, downstream}
        self._open |= both
        try:
            await asyncio.gather(
                self._pass(reader, downstream, is_answer=False),
                self._pass(upstream, writer, is_answer=True),
            )
        finally:
            self._open -= both
            for each in both:
                each.close()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                await asyncio.sleep(self.delay_seconds)
                if is_answer and self.loses_answers:
                    break
                target.write(data)
                await target.drain()
        target.close()


@contextmanager
def way_to(port: int) -> Iterator[Way]:
    """One to a server on a port."""
    way, is_open = Way(port), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(way.run(is_open)))
    thread.start()
    is_open.wait()
    try:
        yield way
    finally:
        way.stop()
        thread.join()
