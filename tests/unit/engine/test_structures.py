"""Structures that are tried, by the real process, on a tokenizer whose tokens are bytes."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tokenizers import Tokenizer as Rules
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from app.engine.generation import resolve_sampling
from app.engine.vllm.structures import NOT_ALL_CHARACTERS, Structures, compiled_structure
from app.engine.vllm.tokenizer import Tokenizer
from app.errors import InvalidRequest

END = "<|end|>"


def bytes_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = Rules(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    rules.add_special_tokens([END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules)
    tokenizer.eos_token = END
    return Tokenizer(tokenizer)


TOKENIZER = bytes_tokenizer()


def pieces_tokenizer() -> Tokenizer:
    """Pieces of text, as T5 has them: letters, and words with the space before them."""
    words = ["<pad>", END, "<unk>", "▁", *"abcdehot", "▁the", "▁cat", "cat"]
    rules = Rules(models.Unigram([(word, -1.0) for word in words], unk_id=2))
    rules.pre_tokenizer = pre_tokenizers.Metaspace()
    rules.decoder = decoders.Metaspace()
    rules.add_special_tokens(words[:3])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules)
    tokenizer.eos_token = END
    return Tokenizer(tokenizer)


@pytest.fixture
async def structures() -> AsyncIterator[Structures]:
    structures = Structures(TOKENIZER, TOKENIZER.size)
    yield structures
    await structures.stop()


async def refusal(structures: Structures, **given: Any) -> InvalidRequest | None:
    structure = compiled_structure(resolve_sampling(**given))
    assert structure is not None
    try:
        await structures.check(structure)
    except InvalidRequest as error:
        return error
    return None


DATE = {"type": "string", "pattern": "[0-9]{4}-[0-9]{2}"}
ORDER = {
    "type": "object",
    "properties": {"item": {"enum": ["tea", None]}, "on": DATE, "parts": {"$ref": "#/$defs/p"}},
    "$defs": {"p": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["item"],
}


@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": {}},
        {"json_schema": ORDER},
        {"regex": "[0-9]{4}-[0-9]{2}"},
        {"regex": "(a|b)*"},
        {"choice": ["yes", "yes, please", 'é " \\ \n']},
    ],
)
async def test_what_can_be_kept_to(structures: Structures, given: dict[str, Any]) -> None:
    assert await refusal(structures, **given) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"choice": ["the cat", " dot", "a"]}, None),
        ({"choice": ["cat", "cats"]}, "has no token for 's': leave it out"),
        ({"regex": "[a-d]+"}, NOT_ALL_CHARACTERS.partition("tokenizer ")[2]),
        ({"json_schema": {}}, NOT_ALL_CHARACTERS.partition("tokenizer ")[2]),
    ],
)
async def test_tokens_that_are_pieces_of_text_say_what_they_have(
    given: dict[str, Any], reason: str | None
) -> None:
    pieces = pieces_tokenizer()
    structures = Structures(pieces, pieces.size)
    error = await refusal(structures, **given)
    await structures.stop()

    assert (error is None) is (reason is None)
    assert error is None or error.message.endswith(f"tokenizer {reason}")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"enum": []}}, "anyOf is empty"),
        ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "nsatisfiable"),
        ({"json_schema": {"$ref": "#/$defs/nowhere"}}, "nowhere"),
        ({"json_schema": {"$ref": "https://example.com/schema"}}, "example.com"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
    ],
)
async def test_what_cannot(structures: Structures, given: dict[str, Any], reason: str) -> None:
    error = await refusal(structures, **given)
    assert error is not None
    (kind,) = given
    assert error.param == kind
    assert error.message.startswith(f"{kind} cannot be honoured: ")
    assert reason in error.message
    assert "\n" not in error.message


TRIED_WITH = """
import os
from app.engine.vllm import structure_trial

def why_not(tokenizer, kind, text):
    {what_it_does}

structure_trial.why_not = why_not
assert structure_trial._tried_in_a_fork(None, "regex", "a") == structure_trial.TOO_MUCH
"""


@pytest.mark.parametrize(
    "what_it_does",
    ["while True: pass", "bytearray(structure_trial.MAX_BYTES + (1 << 20))", "os.abort()"],
)
def test_a_trial_that_takes_too_much_ends(what_it_does: str) -> None:
    """In a process with one thread, as it is: it forks."""
    code = TRIED_WITH.format(what_it_does=what_it_does)
    subprocess.run([sys.executable, "-c", code], check=True)


AS_VLLM_DOES = """
from vllm.v1.structured_output.backend_guidance import serialize_guidance_grammar
from vllm.v1.structured_output.request import get_structured_output_key
from app.engine.generation import resolve_sampling
from app.engine.vllm.engine import _sampling_params
from app.engine.vllm.structure_trial import grammar_of
from app.engine.vllm.structures import compiled_structure

schema = {"type": "object", "properties": {"é": {"enum": [None, "a"]}}}
for given in ({"regex": '"a" [b]'}, {"choice": ['é"', "b"]}, {"json_schema": schema}):
    sampling = resolve_sampling(**given)
    asked = _sampling_params(sampling, None, []).structured_outputs
    compiled = serialize_guidance_grammar(*get_structured_output_key(asked))
    assert grammar_of(*compiled_structure(sampling)) == compiled
"""


def test_what_is_tried_is_what_vllm_compiles() -> None:
    """vLLM takes long to import and changes the process that imports it."""
    subprocess.run([sys.executable, "-c", AS_VLLM_DOES], check=True)


async def test_what_is_known_is_not_tried_again(structures: Structures) -> None:
    assert await refusal(structures, regex="(a") is not None
    assert await refusal(structures, regex="a") is None
    # Nothing answers any more.
    process = structures._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    assert await refusal(structures, regex="(a") is not None
    assert await refusal(structures, regex="a") is None


async def test_a_client_that_leaves_takes_no_answer_of_another(structures: Structures) -> None:
    leaving = asyncio.create_task(refusal(structures, regex="(a"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await refusal(structures, regex="b") is None
    assert await refusal(structures, regex="(a") is not None


async def test_a_process_that_has_died_is_started_again(structures: Structures) -> None:
    assert await refusal(structures, regex="a") is None
    process = structures._process
    assert process is not None
    process.kill()
    await process.wait()
    assert await refusal(structures, regex="b") is None


async def test_the_process_ends_with_its_input(structures: Structures) -> None:
    assert await refusal(structures, regex="a") is None
    process = structures._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert await process.wait() == 0


async def test_stopped_it_is_gone() -> None:
    structures = Structures(TOKENIZER, TOKENIZER.size)
    assert await refusal(structures, regex="a") is None
    process = structures._process
    assert process is not None
    await structures.stop()
    assert process.returncode == -signal.SIGKILL


async def test_rules_that_llguidance_does_not_know() -> None:
    without_decoder = Rules(models.BPE({"a": 0}, []))
    structures = Structures(Tokenizer(PreTrainedTokenizerFast(tokenizer_object=without_decoder)), 1)
    error = await refusal(structures, regex="a")
    await structures.stop()
    assert error is not None
    assert "this model's tokenizer" in error.message


async def test_a_tokenizer_of_another_kind_has_no_structures() -> None:
    class Slow:
        """Not one of the `tokenizers` library."""

    structures = Structures(Tokenizer(Slow()), 10)
    error = await refusal(structures, regex="a")
    assert error is not None
    assert "this model's tokenizer" in error.message
