"""Adapters on the real engine give what PEFT gives with the same weights, token for token."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.peft_reference import LORAS, SOFT_PROMPTS, PeftReference
from tests.server.requests import add_adapter, generate, stream_async

PROMPTS = ["Once upon a time", "The capital of France is", "Q: What is 2 + 2?\nA:"]
Pair = tuple[str | None, str | None]
PAIRS: list[Pair] = [
    *((lora, None) for lora in LORAS),
    *((None, soft_prompt) for soft_prompt in SOFT_PROMPTS),
    ("rank4", "virtual100"),
    ("rank8", "virtual20"),
    ("rank32", "virtual8"),
]


@pytest.fixture(scope="module")
def adapters(server: Any, peft_reference: PeftReference) -> Iterator[dict[str, str]]:
    """Every adapter of the reference, live; their versions by name."""
    with server.client() as client:
        yield {
            name: add_adapter(client, name, peft_reference.path(name))
            for name in (*LORAS, *SOFT_PROMPTS)
        }
        for name in (*LORAS, *SOFT_PROMPTS):
            assert client.delete(f"/adapters/{name}").status_code == 204


def body_of(pair: Pair, prompt: str | list[str]) -> dict[str, Any]:
    named = {"adapter": pair[0], "soft_prompt": pair[1]}
    controls = {"prompt": prompt, "max_new_tokens": 16, "return_token_ids": True}
    return controls | {field: name for field, name in named.items() if name is not None}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(filter(None, pair)))
def test_greedy_equals_peft_token_for_token(
    client: httpx.Client, adapters: dict[str, str], peft_reference: PeftReference, pair: Pair
) -> None:
    lora, soft_prompt = pair
    expected = [
        peft_reference.generate(prompt, adapter=lora, soft_prompt=soft_prompt) for prompt in PROMPTS
    ]

    answer = generate(client, **body_of(pair, PROMPTS))

    assert [completion["token_ids"] for completion in answer["completions"]] == expected
    for field, name in (("adapter", lora), ("soft_prompt", soft_prompt)):
        used = None if name is None else {"name": name, "version": adapters[name]}
        assert answer.get(field) == used
    virtual_tokens = 0 if soft_prompt is None else SOFT_PROMPTS[soft_prompt]
    assert answer["usage"]["virtual_tokens"] == len(PROMPTS) * virtual_tokens


def test_adapters_change_the_text(client: httpx.Client, adapters: dict[str, str]) -> None:
    """Otherwise the tests here would show nothing."""
    answers = [generate(client, **body_of(pair, PROMPTS)) for pair in [(None, None), *PAIRS]]

    texts = {tuple(each["text"] for each in answer["completions"]) for answer in answers}
    assert len(texts) == len(answers)


async def test_a_mix_at_once_gives_what_each_gives_alone(
    client: httpx.Client, async_client: httpx.AsyncClient, adapters: dict[str, str]
) -> None:
    """Base, 4 LoRAs, 3 soft prompts and pairs of them in one batch, every other one streaming."""
    pairs: list[Pair] = [(None, None), (None, None), *PAIRS]
    bodies = [body_of(pair, prompt) for prompt in PROMPTS[:2] for pair in pairs]
    assert len(bodies) == 24
    alone = [generate(client, **body)["completions"][0] for body in bodies]

    async def ask(index: int, body: dict[str, Any]) -> list[int]:
        if index % 2:
            streamed = await stream_async(async_client, **body)
            assert streamed.done
            return [token for event in streamed.of() for token in event.get("token_ids", [])]
        response = await async_client.post("/generate", json=body)
        token_ids: list[int] = response.json()["completions"][0]["token_ids"]
        return token_ids

    # The second time around, all of them find their prompts in the prefix cache.
    for _ in range(2):
        together = await asyncio.gather(*(ask(i, body) for i, body in enumerate(bodies)))

        assert together == [completion["token_ids"] for completion in alone]


def test_penalties_see_the_text_alone(
    client: httpx.Client, adapters: dict[str, str], peft_reference: PeftReference
) -> None:
    """A soft prompt has no tokens that a repetition penalty could hold against the text."""
    body = body_of((None, "virtual20"), PROMPTS[0]) | {"repetition_penalty": 1.3}
    expected = peft_reference.generate(PROMPTS[0], soft_prompt="virtual20", repetition_penalty=1.3)

    assert generate(client, **body)["completions"][0]["token_ids"] == expected


def test_several_completions_of_a_soft_prompt(
    client: httpx.Client, adapters: dict[str, str]
) -> None:
    body = body_of(("rank8", "virtual20"), PROMPTS[0]) | {"temperature": 1.0, "seed": 3, "n": 3}

    first, second = generate(client, **body), generate(client, **body)

    assert first["completions"] == second["completions"]
    assert len({completion["text"] for completion in first["completions"]}) == 3


def test_a_long_prompt_is_prefilled_in_chunks(
    client: httpx.Client, adapters: dict[str, str], peft_reference: PeftReference
) -> None:
    """Longer than a step of the engine takes; a prefix of it was computed before."""
    prompt = "One, two, three, four, five. " * 500
    pair: Pair = ("rank8", "virtual20")
    expected = peft_reference.generate(
        prompt, adapter=pair[0], soft_prompt=pair[1], max_new_tokens=8
    )

    for cached in (False, True):
        answer = generate(client, **body_of(pair, prompt) | {"max_new_tokens": 8})

        assert answer["completions"][0]["token_ids"] == expected
        assert (answer["usage"]["cached_tokens"] > 0) == cached


def test_inspect_runs_with_adapters_too(client: httpx.Client, adapters: dict[str, str]) -> None:
    body = {"prompt": PROMPTS[0], "adapter": "rank8", "soft_prompt": "virtual20"}
    first_token = generate(client, **body, max_new_tokens=1, return_token_ids=True)

    answer = client.post("/inspect", json=body).json()

    assert answer["adapter"] == {"name": "rank8", "version": adapters["rank8"]}
    assert answer["soft_prompt"] == {"name": "virtual20", "version": adapters["virtual20"]}
    assert answer["virtual_tokens"] == 20
    assert [answer["tokens"][0]["token_id"]] == first_token["completions"][0]["token_ids"]
