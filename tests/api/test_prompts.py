"""What prompts are made from, over HTTP. (What is refused: tests/bad_bodies.py.)"""

from typing import Any

import pytest

from tests.api.support import Served, add_lora, add_soft_prompt, error_of, serving
from tests.fake_engine import VOCABULARY_SIZE, FakeEngine

CONVERSATION = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
]
WRITTEN = "[system]be kind[user]hi[assistant]hello[user]bye[assistant]"
HI = [{"role": "user", "content": "hi"}]


async def completed(served: Served, **body: Any) -> list[str]:
    response = await served.client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return [each["text"] for each in response.json()["completions"]]


async def test_messages_are_in_the_chat_template(served: Served) -> None:
    assert await completed(served, messages=CONVERSATION) == [WRITTEN]
    several = [CONVERSATION, HI]
    assert await completed(served, messages=several) == [WRITTEN, "[user]hi[assistant]"]


async def test_one_user_message_is_what_use_chat_template_makes(served: Served) -> None:
    by_messages = await completed(served, messages=CONVERSATION[:2])
    by_prompt = await completed(served, prompt="hi", system="be kind", use_chat_template=True)
    assert by_messages == by_prompt


async def test_many_messages_are_as_few(served: Served) -> None:
    messages = [*HI, {"role": "assistant", "content": ""}] * 9 + HI
    (text,) = await completed(served, messages=messages, max_new_tokens=50)
    assert text == ("[user]hi[assistant]" * 10)[:50]


async def test_tokens_are_taken_as_they_are(served: Served, engine: FakeEngine) -> None:
    assert await completed(served, prompt_token_ids=[104, 105]) == ["hi"]
    assert await completed(served, prompt_token_ids=[[104, 105], [97]]) == ["hi", "a"]
    assert engine.tokenized == []


async def test_a_token_beyond_the_vocabulary(served: Served) -> None:
    body = {"prompt_token_ids": [[1], [VOCABULARY_SIZE]]}
    response = await served.client.post("/generate", json=body)
    assert error_of(response) == (422, "invalid_request", "prompt_token_ids")
    assert response.json()["error"]["message"] == (
        "prompt 1 has the token id 257 and the vocabulary has 257 tokens: send ids from 0 to 256"
    )


@pytest.mark.parametrize(
    ("prompt", "num_tokens"),
    [({"messages": CONVERSATION}, len(WRITTEN)), ({"prompt_token_ids": [104, 105]}, 2)],
)
async def test_inspect_takes_them_too(
    served: Served, prompt: dict[str, Any], num_tokens: int
) -> None:
    answer = (await served.client.post("/inspect", json=prompt)).json()
    assert answer["prompt_tokens"] == num_tokens


@pytest.mark.parametrize("prompt", [{"messages": [HI]}, {"prompt_token_ids": [[1]]}])
async def test_inspect_takes_one(served: Served, prompt: dict[str, Any]) -> None:
    response = await served.client.post("/inspect", json=prompt)
    assert error_of(response) == (422, "invalid_request", *prompt)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [({"messages": HI}, "[user]hi[assistant]"), ({"prompt_token_ids": [104, 105]}, "hi")],
)
async def test_with_adapters(served: Served, prompt: dict[str, Any], text: str) -> None:
    lora, soft_prompt = await add_lora(served, "l"), await add_soft_prompt(served, "s")
    (answer,) = await completed(served, **prompt, adapter="l", soft_prompt="s")
    assert answer == f"<{lora[:8]}><{soft_prompt[:8]}>{text}"


async def test_what_does_not_fit_is_told_of_its_field(served: Served) -> None:
    for prompt in (
        {"messages": [{**HI[0], "content": "a" * 300}]},
        {"prompt_token_ids": [1] * 300},
    ):
        response = await served.client.post("/generate", json=prompt)
        assert error_of(response) == (422, "context_window_exceeded", *prompt)


async def test_a_model_without_chat_template_takes_no_messages() -> None:
    async with serving(FakeEngine(has_chat_template=False)) as served:
        response = await served.client.post("/generate", json={"messages": HI})
        assert error_of(response) == (422, "invalid_request", "messages")


async def test_the_limit_is_over_all_conversations() -> None:
    async with serving(max_messages=4) as served:
        assert await completed(served, messages=CONVERSATION) == [WRITTEN]
        for messages in (CONVERSATION + HI, [CONVERSATION, HI]):
            response = await served.client.post("/generate", json={"messages": messages})
            assert error_of(response) == (422, "invalid_request", "messages")


async def test_no_prompt_says_which_there_are(served: Served) -> None:
    response = await served.client.post("/generate", json={"max_new_tokens": 3})
    assert response.json()["error"]["message"] == (
        "the prompt is missing: give one of prompt, messages, prompt_token_ids"
    )
