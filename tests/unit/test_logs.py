"""One event a line on stderr, in both formats, the libraries' own included."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from app.settings import LogFormat
from app.telemetry.logs import configure_logging
from softserve.schema.keys import SECRET_PREFIX


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def _events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_json_holds_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("ours").info("done", status=200)
        logging.getLogger("a.library").warning("odd: %s", "x\ny")
    ours, library = _events(capsys)
    del ours["timestamp"], library["timestamp"]
    assert ours == {
        "event": "done",
        "status": 200,
        "request_id": "r1",
        "level": "info",
        "logger": "ours",
    }
    assert library == {
        "event": "odd: x\ny",
        "request_id": "r1",
        "level": "warning",
        "logger": "a.library",
    }


def test_an_exception_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    try:
        int("broken")
    except ValueError:
        structlog.get_logger("ours").exception("request failed")
    (event,) = _events(capsys)
    assert event["exception"].endswith("with base 10: 'broken'")


def test_the_level_is_a_floor(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")
    structlog.get_logger("ours").info("hidden")
    structlog.get_logger("ours").warning("shown")
    assert [event["event"] for event in _events(capsys)] == ["shown"]


def test_auto_is_json_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("auto", "info")
    structlog.get_logger("ours").info("done")
    assert [event["event"] for event in _events(capsys)] == ["done"]


@pytest.mark.parametrize("name", ["httpx", "uvicorn.error", "vllm"])
def test_chatter_is_hidden(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("worth knowing")
    assert [event["event"] for event in _events(capsys)] == ["worth knowing"]


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text", "info")
    structlog.get_logger("ours").info("done", status=200)
    line = capsys.readouterr().err
    assert "done" in line
    assert "status=200" in line
    assert "\x1b" not in line


def test_text_of_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text", "info")
    try:
        int("broken")
    except ValueError:
        structlog.get_logger("ours").exception("request failed")
    assert "ValueError: invalid literal" in capsys.readouterr().err


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_key_is_logged(log_format: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    secret = f"{SECRET_PREFIX}swordfish"
    configure_logging(log_format, "info")
    with structlog.contextvars.bound_contextvars(request_id=secret):
        structlog.get_logger("ours").info("request ended", path=f"/adapters/{secret}")
        logging.getLogger("a.library").warning("odd: %s", secret)
        try:
            int(secret)
        except ValueError:
            structlog.get_logger("ours").exception("request failed")
    written = capsys.readouterr().err
    assert written.count(f"{SECRET_PREFIX}…") + written.count(f"{SECRET_PREFIX}\\u2026") == 6
    assert "swordfish" not in written
