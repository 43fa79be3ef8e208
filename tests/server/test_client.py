"""The client and the command line against the real engine."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softserve.client import (
    AsyncClient,
    Client,
    CompletionEnd,
    InvalidRequest,
    NotFound,
    ServerFull,
)
from tests.server.process import ServerProcess, wait_until

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
QUESTION = "Tell me the capital of France."
ANSWER = "The capital of France is Paris."
MESSAGE = "Message: I was charged twice.\nIntent:"
# Far longer than any test waits: only an abort can end it in time.
ENDLESS = 4000
FREED_WITHIN_SECONDS = 20.0


@pytest.fixture
def softserve(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def command(server: ServerProcess, *arguments: str, typed: str = "") -> tuple[int, str, str]:
    """The exit code, standard output and standard error of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.entry", *arguments, "--url", server.url],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_generate_and_stream(softserve: Client) -> None:
    answer = softserve.generate(QUESTION, use_chat_template=True, max_new_tokens=20)
    assert answer.completions[0].text == ANSWER
    with softserve.stream(QUESTION, use_chat_template=True, max_new_tokens=20) as events:
        *pieces, end = events
    assert "".join(piece.text for piece in pieces) == ANSWER
    assert isinstance(end, CompletionEnd)
    assert end.usage.completion_tokens == answer.usage.completion_tokens


async def test_many_at_once(server: ServerProcess) -> None:
    async with AsyncClient(server.url) as client:
        answer = await client.generate([QUESTION] * 3, use_chat_template=True, max_new_tokens=20)
    assert [each.text for each in answer.completions] == [ANSWER] * 3


def test_an_adapter_from_upload_to_removal(softserve: Client) -> None:
    added = softserve.adapters.upload("client-task", ADAPTERS / "support-intent-lora")
    answer = softserve.generate(MESSAGE, adapter="client-task", max_new_tokens=4)
    assert answer.completions[0].text == " billing"
    assert answer.adapter is not None
    assert answer.adapter.version == added.live
    softserve.adapters.remove("client-task")
    with pytest.raises(NotFound):
        softserve.generate(MESSAGE, adapter="client-task")


def test_leaving_a_stream_frees_the_engine(softserve: Client) -> None:
    with softserve.stream("Once", max_new_tokens=ENDLESS, ignore_eos=True) as events:
        for _ in events:
            break

    def is_idle() -> bool:
        lines = softserve.metrics().splitlines()
        (running,) = (each for each in lines if each.startswith("softserve_sequences_running "))
        return float(running.split()[1]) == 0

    wait_until(is_idle, FREED_WITHIN_SECONDS)


def test_a_full_server_is_asked_again(server: ServerProcess) -> None:
    """It takes 64 completions: beside 60 that are left, five more have to wait."""
    with Client(server.url) as client:
        prompts = ["Once upon a time"] * 30
        with client.stream(
            prompts, n=2, temperature=1.0, max_new_tokens=ENDLESS, ignore_eos=True
        ) as events:
            next(iter(events))
            with Client(server.url, retry_seconds=0) as hasty, pytest.raises(ServerFull) as raised:
                hasty.generate(["Hi"] * 5, max_new_tokens=1)
        assert raised.value.status == 503
        assert raised.value.retry_after_seconds is not None
        answer = client.generate(["Hi"] * 5, max_new_tokens=1)
    assert len(answer.completions) == 5


def test_refusals(softserve: Client) -> None:
    with pytest.raises(InvalidRequest, match="top_k has no effect at temperature 0") as raised:
        softserve.generate("Hi", temperature=0, top_k=3)
    assert (raised.value.param, raised.value.status) == ("top_k", 422)


def test_the_command_line_in_a_pipe(server: ServerProcess) -> None:
    options = ["--use-chat-template", "--max-new-tokens", "20"]
    code, out, err = command(server, "generate", *options, typed=QUESTION + "\n")
    assert (code, out) == (0, ANSWER + "\n")
    assert "tokens a second" in err
    _, out, _ = command(server, "generate", QUESTION, *options, "--json")
    assert json.loads(out)["completions"][0]["text"] == ANSWER


def test_a_conversation(server: ServerProcess, softserve: Client) -> None:
    turns = [{"role": "user", "content": QUESTION}]
    first = softserve.generate(messages=turns, max_new_tokens=20).completions[0].text
    again = [*turns, {"role": "assistant", "content": first}, *turns]
    second = softserve.generate(messages=again, max_new_tokens=20).completions[0].text
    assert first == ANSWER

    typed = f"/set max_new_tokens 20\n{QUESTION}\n{QUESTION}\n/undo\n{QUESTION}\n"
    code, out, _ = command(server, "chat", typed=typed)

    assert (code, out) == (0, f"{first}\n{second}\n{second}\n")
