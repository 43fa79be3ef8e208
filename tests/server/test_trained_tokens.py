"""Tokens with embeddings of an adapter's own, on the real engine: each gives what PEFT gives."""

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from tests.peft_types import WITH_TOKENS, make
from tests.server.peft_reference import PeftReference, default_base
from tests.server.requests import add_adapter

PROMPTS = ["Once upon a time", "The capital of France is", "Q: What is 2 + 2?\nA:"]
NUM_TOKENS = 16
# A LoRA beside them, and a soft prompt before them: embeddings that are nobody's tokens.
LORA, SOFT_PROMPT = "rank8", "virtual8"
# An adapter and a soft prompt, or None for none.
Pair = tuple[str | None, str | None]
PAIRS: list[Pair] = [
    (None, None),
    *((name, None) for name in WITH_TOKENS),
    (LORA, None),
    (None, SOFT_PROMPT),
    ("tokens", SOFT_PROMPT),
    ("lora-and-tokens", SOFT_PROMPT),
]
Expected = dict[Pair, list[list[int]]]

# PEFT advises who trains.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


@pytest.fixture(scope="module")
def expected(peft_reference: PeftReference) -> Expected:
    """By PEFT, each on a base model of its own: it does not take all of them out again."""
    answers = {}
    base = default_base()
    for name in (None, *WITH_TOKENS):
        model = base
        if name is not None:
            model = make(deepcopy(base), name, peft_reference.folder / name)
        for pair in PAIRS:
            if pair[0] == name:
                answers[pair] = complete(model, peft_reference, pair[1])
    answers[LORA, None] = [peft_reference.generate(each, adapter=LORA) for each in PROMPTS]
    return answers


def complete(model: Any, reference: PeftReference, soft_prompt: str | None) -> list[list[int]]:
    answers = []
    for prompt in PROMPTS:
        with torch.inference_mode():
            embeddings = model.get_input_embeddings()(
                reference.tokenizer(prompt, return_tensors="pt").input_ids
            )
            if soft_prompt is not None:
                saved = load_file(reference.path(soft_prompt) / "adapter_model.safetensors")
                embeddings = torch.cat([saved["prompt_embeddings"][None], embeddings], dim=1)
            mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
            output = model.generate(
                inputs_embeds=embeddings,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
            )
        answers.append(output[0].tolist())
    return answers


@pytest.fixture(scope="module")
def adapters(server: Any, peft_reference: PeftReference, expected: Expected) -> Iterator[None]:
    """Every adapter, live by its own name."""
    names = [*WITH_TOKENS, LORA, SOFT_PROMPT]
    with server.client() as client:
        for name in names:
            add_adapter(client, name, peft_reference.folder / name)
        yield
        for name in names:
            assert client.delete(f"/adapters/{name}").status_code == 204


@pytest.mark.usefixtures("adapters")
async def test_every_adapter_in_one_batch_gives_what_peft_gives(
    async_client: httpx.AsyncClient, expected: Expected
) -> None:
    async def ask(pair: Pair) -> list[list[int]]:
        named = {"adapter": pair[0], "soft_prompt": pair[1]}
        body = {"prompt": PROMPTS, "max_new_tokens": NUM_TOKENS, "return_token_ids": True}
        body |= {field: name for field, name in named.items() if name is not None}
        response = await async_client.post("/generate", json=body)
        assert response.status_code == 200, response.text
        return [completion["token_ids"] for completion in response.json()["completions"]]

    answers = await asyncio.gather(*map(ask, PAIRS))

    assert dict(zip(PAIRS, answers, strict=True)) == expected


def test_every_adapter_changes_every_answer(expected: Expected) -> None:
    """Otherwise equal answers would show nothing."""
    for name in WITH_TOKENS:
        for mine, base in zip(expected[name, None], expected[None, None], strict=True):
            assert mine != base, name


@pytest.mark.usefixtures("adapters")
def test_what_is_said_of_them(server: Any) -> None:
    with server.client() as client:
        answer = client.get("/adapters/lora-and-tokens").json()
    (version,) = answer["versions"]
    assert version["rank"] == 8
    assert version["target_modules"] == ["embed_tokens", "lm_head", "q_proj", "v_proj"]
    assert "4 tokens are trained" in version["notes"][0]
