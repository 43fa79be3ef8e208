"""The command line explains itself, and fails with one sentence."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.late import LateCommand
from app.cli.main import COMMANDS, cli
from app.settings import Settings
from softserve import __version__
from softserve.schema.inspection import InspectBody
from tests.threaded import in_thread
from tests.unit.cli.test_inspection_tables import ANSWER


def _run(*arguments: str, **environment: str) -> Result:
    variables = {"COLUMNS": "200", "TERM": "dumb", **environment}
    return CliRunner().invoke(cli, arguments, env=variables)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class Answers(BaseHTTPRequestHandler):
    """A server that answers every POST with what the test says."""

    status = 200
    body = b""
    received: list[tuple[str, Any]]

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.received.append((self.path, json.loads(self.rfile.read(length))))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[type[Answers]]:
    class Here(Answers):
        received: list[tuple[str, Any]] = []  # noqa: RUF012 (one server a class)

    with in_thread(HTTPServer(("127.0.0.1", 0), Here)) as server:
        Here.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        yield Here


def _inspect(answers: Any, *arguments: str) -> Result:
    return _run("inspect", "The sky is", "--url", answers.url, *arguments)


def test_version() -> None:
    result = _run("--version")
    assert (result.exit_code, result.stdout) == (0, f"softserve {__version__}\n")


def test_help_names_every_command() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    assert {"serve", "inspect"} <= set(_plain(result.output).split())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_explains_itself(command: LateCommand) -> None:
    assert command.help is not None
    for arguments in (["--help"], [command.name, "--help"]):
        words = " ".join(_plain(_run(*arguments).output).replace("│", " ").split())
        assert command.help.partition("\n")[0] in words


def test_what_is_neither_on_nor_off_can_be_said_both_ways() -> None:
    words = _plain(_run("serve", "--help").output).replace("│", " ").split()
    assert {"--playground", "--no-playground", "--open-docs"} <= set(words)
    assert "--no-open-docs" not in words


@pytest.mark.parametrize("name", InspectBody.model_fields)
def test_help_of_inspect_has_every_field(name: str) -> None:
    words = " ".join(_plain(_run("inspect", "--help").output).replace("│", " ").split())
    description = InspectBody.model_fields[name].description
    assert description is not None
    assert description in words


@pytest.mark.parametrize("name", Settings.model_fields)
def test_help_of_serve_has_every_setting(name: str) -> None:
    words = " ".join(_plain(_run("serve", "--help").output).replace("│", " ").split())
    assert f"--{name.replace('_', '-')} " in words
    description = Settings.model_fields[name].description
    assert description is not None
    assert description in words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "70000"], "--port: Input should be less than or equal to 65535"),
        (
            ["--admin-key", "secret", "--port", "70000"],
            "--port: Input should be less than or equal to 65535",
        ),
        (["--max-n", "0"], "--max-n: Input should be greater than 0"),
        (["--kv-cache-gib", "-1"], "--kv-cache-gib: Input should be greater than 0"),
        (
            ["--port", "-1", "--context-window", "0"],
            (
                "--port: Input should be greater than or equal to 0; "
                "--context-window: Input should be greater than 0"
            ),
        ),
    ],
)
def test_a_setting_out_of_range(arguments: list[str], sentence: str) -> None:
    result = _run("serve", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert sorted(result.stderr.removeprefix("softserve: ").strip().split("; ")) == sorted(
        sentence.split("; ")
    )


@pytest.mark.parametrize(
    "arguments", [["--port", "abc"], ["--precision", "int4"], ["--no-such-option"], ["surplus"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = _run("serve", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert arguments[0] in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_environment_variable() -> None:
    result = _run("serve", SOFTSERVE_PORT="abc")
    assert result.exit_code == 1
    assert result.stderr.startswith("softserve: --port: Input should be a valid integer")


def test_engine_arguments_from_the_environment() -> None:
    result = _run("serve", "--port", "70000", SOFTSERVE_ENGINE_ARG="seed=1")
    assert result.exit_code == 1
    assert result.stderr == "softserve: --port: Input should be less than or equal to 65535\n"


def test_inspect_sends_what_was_given(answers: type[Answers]) -> None:
    answers.body = json.dumps(ANSWER).encode()
    result = _inspect(answers, "--top-k", "2", "--num-tokens", "4")
    assert result.exit_code == 0
    assert "temperature 0.7, top_k 2, min_p 0.1" in result.stdout
    assert "2 of 49,152 tokens can be sampled" in result.stdout
    assert answers.received == [
        (
            "/inspect",
            {"prompt": "The sky is", "top_k": 2, "num_tokens": 4},
        )
    ]


def test_inspect_sends_every_control(answers: type[Answers]) -> None:
    answers.body = json.dumps(ANSWER).encode()
    _inspect(
        answers,
        *("--temperature", "0.5", "--top-p", "0.9", "--min-p", "0.1"),
        *("--use-chat-template", "--system", "be kind"),
        *("--adapter", "my-task", "--soft-prompt", "my-prompt"),
    )
    assert answers.received[0][1] == {
        "prompt": "The sky is",
        "temperature": 0.5,
        "top_p": 0.9,
        "min_p": 0.1,
        "adapter": "my-task",
        "soft_prompt": "my-prompt",
        "use_chat_template": True,
        "system": "be kind",
    }


def test_inspect_as_json(answers: type[Answers]) -> None:
    answers.body = json.dumps(ANSWER).encode()
    result = _inspect(answers, "--json")
    assert json.loads(result.stdout)["tokens"] == ANSWER["tokens"]


def test_inspect_tells_the_servers_sentence(answers: type[Answers]) -> None:
    answers.status = 422
    answers.body = b'{"error": {"type": "x", "message": "top_k is wrong: lower it", "param": null}}'
    result = _inspect(answers)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "softserve: top_k is wrong: lower it\n"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (500, b"not json"),
        (404, b'{"detail": "Not Found"}'),
        (200, b"{}"),
        (200, b"[]"),
    ],
)
def test_inspect_asks_another_kind_of_server(
    answers: type[Answers], status: int, body: bytes
) -> None:
    answers.status, answers.body = status, body
    result = _inspect(answers)
    assert result.exit_code == 1
    assert result.stderr.endswith("does not answer as softserve does: check the URL\n")


def test_inspect_without_a_server() -> None:
    result = _run("inspect", "hello", "--url", "http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("softserve: no answer from http://127.0.0.1:1 (")
    assert result.stderr.endswith(
        "): start a server with `softserve serve`, or name the URL of another\n"
    )


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://", "http://[", "ftp://localhost"])
def test_inspect_with_a_bad_url(url: str) -> None:
    result = _run("inspect", "hello", "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("softserve: ")
    assert result.stderr.count("\n") == 1


def test_the_url_comes_from_the_environment() -> None:
    result = _run("inspect", "hello", SOFTSERVE_URL="http://127.0.0.1:2")
    assert "no answer from http://127.0.0.1:2 (" in result.stderr
