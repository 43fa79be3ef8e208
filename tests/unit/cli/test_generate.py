"""`softserve generate` against the whole app on a fake engine, which echoes the prompt."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.generate import CONTROLS
from app.cli.main import cli
from app.cli.options import flag
from softserve.schema.generation import GenerateBody
from tests.unit.cli.serving import served

SUMMARY = re.compile(
    r"\[(\d+ tokens?) in \d+\.\d\d s; [\d,.]+ tokens a second; the first after \d+ ms(; .*)?\]\n"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        yield url


def run(url: str, *arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(cli, ["generate", *arguments, "--url", url], input=typed)


@pytest.mark.parametrize("how", [[], ["--stream"], ["--no-stream"]])
def test_the_text_alone_is_on_standard_output(url: str, how: list[str]) -> None:
    result = run(url, "hello", *how)
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    summary = SUMMARY.fullmatch(result.stderr)
    assert summary is not None, result.stderr
    # The end-of-sequence token counts.
    assert summary.groups() == ("6 tokens", None)


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_standard_input(url: str, arguments: list[str]) -> None:
    result = run(url, *arguments, typed="two\nlines\n")
    assert result.stdout == "two\nlines\n"


def test_controls(url: str) -> None:
    result = run(url, "hello", "--max-new-tokens", "3")
    assert result.stdout == "hel\n"
    assert result.stderr.endswith("; ended by max_new_tokens]\n")
    assert run(url, "one. two; x", "--stop", ";", "--stop", ".").stdout == "one\n"


def test_a_chat(url: str) -> None:
    result = run(url, "hi", "--use-chat-template", "--system", "be kind")
    assert result.stdout == "[system]be kind[user]hi[assistant]\n"


def test_what_is_given_as_json(url: str, tmp_path: Path) -> None:
    file = tmp_path / "turns.json"
    file.write_text('[{"role": "user", "content": "hi"}]')
    for given in (f"@{file}", file.read_text()):
        assert run(url, "--messages", given).stdout == "[user]hi[assistant]\n"
    assert run(url, "--prompt-token-ids", "[104, 105]").stdout == "hi\n"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [("{", "it is not JSON"), ("@/no/such/file", "/no/such/file cannot be read (No such file")],
)
def test_what_is_not_json(url: str, given: str, sentence: str) -> None:
    result = CliRunner().invoke(
        cli, ["generate", "--messages", given, "--url", url], env={"COLUMNS": "200"}
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr


def test_several_completions(url: str) -> None:
    result = run(url, "ab", "--n", "3", "--temperature", "0.01", "--seed", "1")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.split("\n\n")) == 3
    refused = run(url, "ab", "--n", "3", "--temperature", "1", "--stream")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == (
        "softserve: --stream would mix the completions of --n: leave it out, or add --json\n"
    )


def test_json(url: str) -> None:
    answer = json.loads(run(url, "hello", "--json").stdout)
    assert answer["completions"][0]["text"] == "hello"
    assert answer["usage"]["completion_tokens"] == 6
    lines = run(url, "hello", "--json", "--stream").stdout.splitlines()
    *pieces, end = map(json.loads, lines)
    assert "".join(piece["text"] for piece in pieces) == "hello"
    assert end["finish_reason"] == "stop"


def test_the_servers_sentence(url: str) -> None:
    result = run(url, "hello", "--adapter", "none-such")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no adapter is called 'none-such'" in result.stderr


def test_every_control_is_an_option() -> None:
    shown = CliRunner().invoke(cli, ["generate", "--help"], env={"COLUMNS": "200"}).stdout
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("│", " ").split())
    assert set(CONTROLS) | {"prompt", "stream"} == set(GenerateBody.model_fields)
    for name, field in CONTROLS.items():
        assert f"{flag(name)} " in words
        assert field.description is not None
        assert field.description in words
