"""`softserve chat`: in a pipe on a fake engine, and in a terminal."""

import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import cli
from tests.threaded import in_thread
from tests.unit.cli.serving import served
from tests.unit.cli.terminal import TIMEOUT_SECONDS, Terminal


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        yield url


def chat(url: str, *lines: str, options: list[str] | None = None) -> Result:
    arguments = ["chat", *(options or []), "--url", url]
    return CliRunner().invoke(cli, arguments, input="\n".join(lines))


def test_each_turn_knows_those_before_it(url: str) -> None:
    result = chat(url, "a", "b")
    assert (result.exit_code, result.stdout) == (
        0,
        "[user]a[assistant]\n[user]a[assistant][user]a[assistant][user]b[assistant]\n",
    )
    assert result.stderr.count("tokens a second") == 2


def test_the_system_message(url: str) -> None:
    assert chat(url, "a", options=["--system", "be kind"]).stdout == (
        "[system]be kind[user]a[assistant]\n"
    )
    lines = ["/system be brief", "a", "/undo", "/system", "a"]
    assert chat(url, *lines).stdout == "[system]be brief[user]a[assistant]\n[user]a[assistant]\n"


def test_undo(url: str) -> None:
    result = chat(url, "a", "/undo", "b", "/undo", "/undo")
    assert result.stdout == "[user]a[assistant]\n[user]b[assistant]\n"
    assert "undone: a\n" in result.stderr
    assert result.stderr.endswith("undone: b\nthere is nothing to undo\n")


def test_the_history(url: str) -> None:
    assert chat(url, "a", "/history").stdout.splitlines()[1:] == [
        "user: a",
        "assistant: [user]a[assistant]",
    ]


def test_controls(url: str) -> None:
    lines = ["/set max_new_tokens 6", "a", "/undo", "/set max-new-tokens", "a"]
    result = chat(url, *lines, options=["--max-new-tokens", "3"])
    assert result.stdout == "[user]\n[user]a[assistant]\n"
    assert "max_new_tokens is 6\n" in result.stderr
    assert "max_new_tokens is the default\n" in result.stderr
    assert "ended by max_new_tokens" in result.stderr


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/set temperature hot", "temperature must be a valid number\n"),
        ("/set temperature 7", "temperature must be less than or equal to 2\n"),
        ("/set mood good", "there is no control mood: choose from "),
        ("/set n 3", "there is no control n: choose from "),
        ("/no-such-command", "/set NAME VALUE: a control"),
        ("/help", "/undo: take the last turn back"),
    ],
)
def test_what_cannot_be_set_changes_nothing(url: str, line: str, sentence: str) -> None:
    result = chat(url, line, "a")
    assert sentence in result.stderr
    assert result.stdout == "[user]a[assistant]\n"


def test_a_refusal_ends_a_turn_and_not_the_chat(url: str) -> None:
    result = chat(url, "/adapter none-such", "a", "/adapter", "b")
    assert result.exit_code == 0
    assert "no adapter is called 'none-such'" in result.stderr
    # The turn that was not answered is not part of the conversation.
    assert result.stdout == "[user]b[assistant]\n"


class Endless(BaseHTTPRequestHandler):
    """Streams an answer that does not end until its reader leaves."""

    left: threading.Event
    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'data: {"prompt_index": 0, "index": 0, "text": "and so on"}\n\n')
        # Its reader sends nothing more, and so it ends when that leaves.
        self.rfile.read(1)
        self.left.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_ctrl_c_ends_the_answer_and_not_the_chat(terminal: Callable[..., Terminal]) -> None:
    class Here(Endless):
        left = threading.Event()
        bodies: list[dict[str, Any]] = []  # noqa: RUF012 (one server a class)

    with in_thread(ThreadingHTTPServer(("127.0.0.1", 0), Here)) as server:
        started = terminal("chat", "--url", f"http://127.0.0.1:{server.server_port}")
        started.read_until("> ")
        started.type("go on\n")
        started.read_until("and so on")
        started.process.send_signal(signal.SIGINT)
        started.read_until("[the answer was ended]")
        assert Here.left.wait(TIMEOUT_SECONDS)
        started.read_until("> ")
        # At the prompt, it takes the line back.
        started.press_ctrl_c_until("> ")
        started.type("once more\n")
        started.read_until("and so on")
        started.process.send_signal(signal.SIGINT)
        started.read_until("> ")
        started.type("\x04")
        assert started.process.wait(TIMEOUT_SECONDS) == 0
    # What was said before it was ended is part of the conversation.
    assert [each["content"] for each in Here.bodies[1]["messages"]] == [
        "go on",
        "and so on",
        "once more",
    ]
