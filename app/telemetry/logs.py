"""Structured logs on stderr: one event a line, with the id of the request that it belongs to."""

import atexit
import logging
import sys
from typing import Any

import structlog

from app.settings import LogFormat, LogLevel
from app.telemetry.relay import Relay
from softserve.schema.keys import without_secrets

SHARED_PROCESSORS: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

# They announce what softserve announces itself, or what an operator can do nothing about.
QUIET_LOGGERS = ("uvicorn.error", "httpx", "vllm")


def configure_logging(log_format: LogFormat, level: LogLevel) -> None:
    """Send the logs of softserve and of the libraries in this process to stderr, alike."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        if as_text
        else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=SHARED_PROCESSORS,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _hide_secrets,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    if level != "debug":
        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*SHARED_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _hide_secrets(logger: Any, method: str, event: structlog.typing.EventDict) -> dict[str, Any]:
    """A key may come where nobody expects one, in a path say: no log shows it."""
    return {
        name: without_secrets(value) if isinstance(value, str) else value
        for name, value in event.items()
    }


def relay_stderr() -> None:
    """Let the server, and the processes that it starts, go on when nobody reads its log.

    Not on a terminal: who stops one with Ctrl-S means it.
    """
    if not sys.stderr.isatty():
        atexit.register(Relay(sys.stderr.fileno(), _notice_of_dropped).end)


def _notice_of_dropped(num_lines: int) -> bytes:
    """A line of the log, in the log's own format."""
    handler = logging.getLogger().handlers[0]
    event = f"{num_lines:,} lines of the log are missing here: nobody read them in time"
    arguments = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": event}
    return (handler.format(logging.makeLogRecord(arguments)) + "\n").encode()
