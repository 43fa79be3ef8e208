"""The text of a completion holds nothing of its prompt; vLLM's own does where that ends in U+FFFD.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("detokenizer_in_vllm.py")
# Ids of the tokenizer with a byte fallback: its first 256 tokens are the bytes.
HALF_OF_A_CHARACTER = [0xF0, 0x9F]
EXCLAMATION_MARK = 261
START, GERMAN = 262, 263
# By name: tokenizer, prompt, completion, stop strings; then the text, and the stop string found.
CASES: dict[str, tuple[list[Any], list[Any]]] = {
    **{
        f"{name}, {kind}": ([kind, prompt, " a secret plan!", stop], expected)
        for kind in ("byte level", "byte fallback")
        for name, prompt, stop, expected in (
            ("a plain prompt", "a plan", [], [" a secret plan!", None]),
            ("it ends in U+FFFD", "a plan caf\ufffd", [], [" a secret plan!", None]),
            ("it ends in many", "a plan \ufffd\ufffd\ufffd", [], [" a secret plan!", None]),
            ("it is nothing else", "\ufffd", [], [" a secret plan!", None]),
            ("it has the stop string", "stop\ufffd", ["stop"], [" a secret plan!", None]),
            ("so has the completion", "plan\ufffd", ["plan"], [" a secret ", "plan"]),
        )
    },
    "a prompt that ends inside of a character": (
        ["byte fallback", [*b"plan", *HALF_OF_A_CHARACTER], "a plan", ["plan"]],
        [" a ", "plan"],
    ),
    "a character of four tokens": (["byte level", "x\ufffd", "😀 a", []], ["😀 a", None]),
    "bytes that are no character, after a prompt that ends in bytes": (
        ["byte fallback", "é", [0xFF, EXCLAMATION_MARK], []],
        ["\ufffd!", None],
    ),
}
# The same of an encoder-decoder model, whose prompts begin with a token that is not given.
CASES_OF_DECODERS: dict[str, tuple[list[Any], list[Any]]] = {
    "nothing but the start": (["byte fallback", [START], "a plan", []], ["a plan", None]),
    "a language as well": (["byte fallback", [START, GERMAN], "a plan", []], ["a plan", None]),
    "a text as well": (["byte fallback", [START, *b"plan"], "a plan", []], [" a plan", None]),
}


@pytest.fixture(scope="module")
def decoded() -> dict[str, dict[str, list[str | None]]]:
    """By class and case: the text of the completion, and the stop string that was found."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps([given for given, _ in (CASES | CASES_OF_DECODERS).values()]),
        capture_output=True,
        text=True,
        check=True,
    )
    by_class = json.loads(done.stdout.splitlines()[-1])
    return {
        name: dict(zip(CASES | CASES_OF_DECODERS, texts, strict=True))
        for name, texts in by_class.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_a_completion_is_its_own_text(
    decoded: dict[str, dict[str, list[str | None]]], case: str
) -> None:
    assert decoded["softserve"][case] == CASES[case][1]


@pytest.mark.parametrize("case", CASES_OF_DECODERS)
def test_a_decoder_begins_a_text_of_its_own(
    decoded: dict[str, dict[str, list[str | None]]], case: str
) -> None:
    """Special tokens in front of it are no text, after which a word would have a space."""
    assert decoded["decoder"][case] == CASES_OF_DECODERS[case][1]


def test_vllm_itself_gives_the_prompt_out(decoded: dict[str, dict[str, list[str | None]]]) -> None:
    """Once this fails, vLLM is cured, and app/engine/vllm/detokenizer.py can go."""
    text, _ = decoded["vllm"]["it ends in U+FFFD, byte level"]
    assert text == "a plan caf\ufffd a secret plan!"
