"""Adapters of other types than LoRA on the real engine: each gives what PEFT gives with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft.helpers import DoraCaching

from tests.peft_types import OTHERS, TYPES, make
from tests.server.peft_reference import PeftReference, default_base
from tests.server.requests import add_adapter

PROMPTS = ["Once upon a time", "The capital of France is", "Q: What is 2 + 2?\nA:"]
NUM_TOKENS = 16
ALL = [*TYPES, *OTHERS]
# What each says to the prompts; the base model's own words are None's.
Expected = dict[str | None, list[list[int]]]


@pytest.fixture(scope="module")
def expected(peft_reference: PeftReference, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """By PEFT, with each adapter alone on the base model."""
    base = default_base()
    answers: Expected = {None: _complete(base, peft_reference)}
    for name in ALL:
        model = make(base, name, folder_of(peft_reference, name))
        answers[name] = _complete(model, peft_reference)
        base = model.unload()
    return answers


def folder_of(peft_reference: PeftReference, name: str) -> Path:
    return peft_reference.folder / f"type-{name}"


def _complete(model: Any, reference: PeftReference) -> list[list[int]]:
    """All prompts at once: PEFT makes some types' weights again in every step."""
    tokenizer = reference.tokenizer
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    # Otherwise PEFT measures the length of every row of a DoRA once a token.
    with torch.inference_mode(), DoraCaching():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NUM_TOKENS)
    answers = output[:, inputs.input_ids.shape[1] :].tolist()
    return [_up_to(tokenizer.eos_token_id, answer) for answer in answers]


def _up_to(end: int, answer: list[int]) -> list[int]:
    """What comes after it is padding."""
    return answer[: answer.index(end) + 1] if end in answer else answer


@pytest.fixture(scope="module")
def adapters(server: Any, peft_reference: PeftReference, expected: Expected) -> Iterator[list[str]]:
    """Every type, live by its own name."""
    with server.client() as client:
        for name in ALL:
            add_adapter(client, name, folder_of(peft_reference, name))
        yield list(ALL)
        for name in ALL:
            assert client.delete(f"/adapters/{name}").status_code == 204


async def test_every_type_in_one_batch_gives_what_peft_gives(
    async_client: httpx.AsyncClient, adapters: list[str], expected: Expected
) -> None:
    async def ask(name: str | None) -> list[list[int]]:
        body = {"prompt": PROMPTS, "max_new_tokens": NUM_TOKENS, "return_token_ids": True}
        if name is not None:
            body["adapter"] = name
        response = await async_client.post("/generate", json=body)
        assert response.status_code == 200, response.text
        return [completion["token_ids"] for completion in response.json()["completions"]]

    names = [None, *adapters, None]
    answers = await asyncio.gather(*map(ask, names))

    assert dict(zip(names, answers, strict=True)) == expected


def test_every_type_changes_every_answer(expected: Expected) -> None:
    """Otherwise equal answers would show nothing."""
    for name in ALL:
        for mine, base in zip(expected[name], expected[None], strict=True):
            assert mine != base, name
