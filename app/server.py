"""The process: bind, load, serve, drain, exit with a code that a supervisor can act on."""

import asyncio
import contextvars
import socket
from types import FrameType

import structlog
import uvicorn

from app.engine.vllm.engine import VLLMEngine
from app.errors import SoftserveError, StartError
from app.http.application import create_app
from app.http.protocol import MAX_HEADER_BYTES, Protocol
from app.settings import Settings

log = structlog.get_logger(__name__)

# Requests have been drained or answered by then; this is for the last bytes.
CLOSE_TIMEOUT_SECONDS = 5


def serve(settings: Settings) -> int:
    """Run the server until a signal or a failure ends it; the process's exit code.

    Raises:
        StartError: the address cannot be listened on.
    """
    # Bind before loading: a taken port fails now, not after a minute.
    listener = _bind(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    log.info("listening", url=f"http://{host}:{port}", host=host, port=port)
    server = Server(settings)
    server.run(sockets=[listener])
    return server.exit_code


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another with --host, --port"
        ) from error
    return listener


class Server(uvicorn.Server):
    """uvicorn, with a drain between the first signal and the end. A second signal ends at once."""

    def __init__(self, settings: Settings) -> None:
        self.exit_code = 0
        self._drain_timeout_seconds = settings.drain_timeout_seconds
        self._draining: asyncio.Task[None] | None = None
        self._app = create_app(settings, VLLMEngine(settings), self._fail)
        super().__init__(
            uvicorn.Config(
                self._app,
                http=Protocol,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                timeout_keep_alive=settings.keep_alive_timeout_seconds,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=CLOSE_TIMEOUT_SECONDS,
            )
        )

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
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        log.info("draining", timeout_seconds=self._drain_timeout_seconds)
        await self._app.state.lifecycle.drain(self._drain_timeout_seconds)
        self.should_exit = True

    def _fail(self, error: SoftserveError) -> None:
        log.error(error.message)
        self.exit_code = 1
        self.should_exit = True
