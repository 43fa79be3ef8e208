"""The process: bind, load, serve, drain, exit with a code that a supervisor can act on."""

import asyncio
import contextvars
import resource
import socket
from functools import partial
from types import FrameType
from typing import cast

import structlog
import uvicorn

from app.access.door import Door
from app.engine.vllm.engine import VLLMEngine
from app.errors import SoftserveError, StartError
from app.http.application import create_app
from app.http.connections import Connections
from app.http.protocol import Patience, Protocol
from app.settings import Settings
from app.telemetry.traces import tracing

log = structlog.get_logger(__name__)

# Requests have been drained or answered by then; this is for the last bytes.
CLOSE_TIMEOUT_SECONDS = 5
# What else is open: libraries, the engine's pipes, files of adapters and templates.
OTHER_FILES = 512
# uvicorn's own.
TICKS_A_SECOND = 10
# What the kernel holds of an answer. It counts its own bookkeeping, and takes twice as much.
SEND_BUFFER_BYTES = 131_072


def serve(settings: Settings) -> int:
    """Run the server until a signal or a failure ends it; the process's exit code.

    Raises:
        StartError: the address cannot be listened on, or strangers would come by it; the file of
            keys cannot be used; or traces cannot be sent as is asked.
    """
    # Bind before loading: a taken port fails now, not after a minute.
    listener = _bind(settings)
    host, port = listener.getsockname()[:2]
    with tracing():
        server = Server(settings)
        server.check_address(host)
        url = f"http://{host}:{port}"
        log.info("listening", url=url, host=host, port=port)
        if settings.has_playground:
            log.info("the playground is a page for your browser", url=f"{url}/")
        server.run(sockets=[listener])
    return server.exit_code


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections have it from their listener.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another with --host, --port"
        ) from error
    return listener


def _room_for(max_connections: int) -> int:
    """How many connections open files are allowed for; the limit is raised as far as it goes."""
    wanted = max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        log.info("the limit on open files is raised", before=soft, now=allowed)
    if allowed == wanted:
        return max_connections
    room = max(allowed - OTHER_FILES, allowed // 2)
    log.warning(
        "the hard limit on open files allows for fewer connections: raise it (ulimit -Hn)",
        hard_limit=hard,
        max_connections=room,
    )
    return room


class Server(uvicorn.Server):
    """uvicorn, with a drain between the first signal and the end. A second signal ends at once."""

    def __init__(self, settings: Settings) -> None:
        self.exit_code = 0
        self._drain_timeout_seconds = settings.drain_timeout_seconds
        self._draining: asyncio.Task[None] | None = None
        self._app = create_app(settings, VLLMEngine(settings), self._fail, self.stop)
        protocol = partial(
            Protocol,
            Connections(_room_for(settings.max_connections), settings.max_connections_per_address),
            Patience(
                settings.header_timeout_seconds,
                settings.body_timeout_seconds,
                settings.write_timeout_seconds,
            ),
            self._count_refusal,
        )
        super().__init__(
            uvicorn.Config(
                self._app,
                http=cast(type[asyncio.Protocol], protocol),
                ws="none",
                timeout_keep_alive=settings.keep_alive_timeout_seconds,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=CLOSE_TIMEOUT_SECONDS,
            )
        )

    def check_address(self, host: str) -> None:
        """Raises `StartError` where what is served openly could be reached from elsewhere."""
        door: Door = self._app.state.door
        door.check_address(host)

    def stop(self) -> None:
        """Drain, and end with exit code 0."""
        if self._draining is None:
            # What is logged of it belongs to no request.
            asyncio.get_running_loop().call_soon(self._begin_drain, context=contextvars.Context())

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_A_SECOND == 0:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Protocol)
                connection.look_after()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would stop listening at once and, at the end, raise the signal again.
        if self._draining is not None:
            self.force_exit = True
            self.should_exit = True
            return
        # A handler runs between any two bytecodes: only this call is safe from here, and the
        # context of the request that is being served has nothing to do with it.
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._begin_drain, context=contextvars.Context())

    def _begin_drain(self) -> None:
        if self._draining is not None:
            return
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        log.info("draining", timeout_seconds=self._drain_timeout_seconds)
        await self._app.state.lifecycle.drain(self._drain_timeout_seconds)
        self.should_exit = True

    def _count_refusal(self, reason: str) -> None:
        self._app.state.metrics.rejections.labels(reason).inc()

    def _fail(self, error: SoftserveError) -> None:
        log.error(error.message)
        self.exit_code = 1
        self.should_exit = True
