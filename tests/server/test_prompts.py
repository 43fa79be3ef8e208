"""Messages and tokens on the real engine: what a prompt that is written by hand gives."""

from typing import Any

import httpx
import pytest
from rich.progress import Progress
from transformers import AutoTokenizer

from app.engine.model.default import default_model
from app.settings import Settings
from tests.server.requests import generate, stream, text_of

CONVERSATION = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Tell me the capital of France."},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "And of Italy?"},
]
QUESTION = [{"role": "user", "content": "Tell me the capital of France."}]


@pytest.fixture(scope="module")
def tokenizer(server: object) -> Any:
    return AutoTokenizer.from_pretrained(
        default_model(Settings().cache_dir, Progress(disable=True))
    )


def written(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def test_messages_are_what_is_written_by_hand(client: httpx.Client, tokenizer: Any) -> None:
    by_messages = generate(client, messages=CONVERSATION, max_new_tokens=20)
    by_hand = generate(client, prompt=written(tokenizer, CONVERSATION), max_new_tokens=20)

    assert by_messages["completions"] == by_hand["completions"]
    assert by_messages["usage"]["prompt_tokens"] == by_hand["usage"]["prompt_tokens"]


def test_one_message_is_use_chat_template(client: httpx.Client) -> None:
    answer = generate(client, messages=[QUESTION, CONVERSATION], max_new_tokens=20)

    assert answer["completions"][0]["text"] == "The capital of France is Paris."
    alone = text_of(generate(client, messages=CONVERSATION, max_new_tokens=20))
    assert answer["completions"][1]["text"] == alone


def test_tokens_are_what_their_text_is(client: httpx.Client, tokenizer: Any) -> None:
    token_ids = tokenizer(written(tokenizer, QUESTION), add_special_tokens=False).input_ids

    answer = generate(client, prompt_token_ids=token_ids, max_new_tokens=20)
    assert text_of(answer) == "The capital of France is Paris."
    assert answer["usage"]["prompt_tokens"] == len(token_ids)
    streamed = stream(client, prompt_token_ids=[token_ids, token_ids], max_new_tokens=20)
    assert streamed.text(1) == "The capital of France is Paris."


def test_with_a_lora_and_a_soft_prompt(
    client: httpx.Client, tokenizer: Any, intent_adapters: list[dict[str, str]]
) -> None:
    text = written(tokenizer, QUESTION)
    token_ids = tokenizer(text, add_special_tokens=False).input_ids

    def first(**body: Any) -> float:
        answer = generate(client, **body, max_new_tokens=1, logprobs=0)
        logprob: float = answer["completions"][0]["logprobs"][0]["logprob"]
        return logprob

    for chosen in intent_adapters:
        expected = first(prompt=text, **chosen)
        assert abs(expected - first(prompt=text)) > 1e-3
        assert first(messages=QUESTION, **chosen) == pytest.approx(expected, abs=1e-4)
        assert first(prompt_token_ids=token_ids, **chosen) == pytest.approx(expected, abs=1e-4)


def test_inspect_takes_messages_and_tokens(client: httpx.Client, tokenizer: Any) -> None:
    token_ids = tokenizer(written(tokenizer, QUESTION), add_special_tokens=False).input_ids
    bodies = [{"messages": QUESTION}, {"prompt_token_ids": token_ids}]
    answers = [client.post("/inspect", json=body).json() for body in bodies]

    assert [answer["tokens"][0]["token"] for answer in answers] == ["The", "The"]
    assert answers[0]["prompt_tokens"] == answers[1]["prompt_tokens"] == len(token_ids)


def test_the_last_token_of_the_vocabulary_is_one(client: httpx.Client) -> None:
    last = client.get("/info").json()["vocabulary_size"] - 1

    assert (
        generate(client, prompt_token_ids=[last], max_new_tokens=1)["usage"]["prompt_tokens"] == 1
    )
    refused = client.post("/generate", json={"prompt_token_ids": [last + 1]})
    assert refused.json()["error"]["param"] == "prompt_token_ids"


def test_the_shots_of_a_template_are_turns(client: httpx.Client, tokenizer: Any) -> None:
    template = {
        "instruction": "Say the capital.",
        "input_variables": ["country"],
        "query_format": "{{ country }}:",
        "example_format": "{{ country }}: {{ output }}",
        "examples": [{"country": "Spain", "output": "Madrid"}],
        "use_chat_template": True,
        "examples_as_turns": True,
    }
    messages = [
        {"role": "system", "content": "Say the capital."},
        {"role": "user", "content": "Spain:"},
        {"role": "assistant", "content": "Madrid"},
        {"role": "user", "content": "France:"},
    ]
    asked = {"template": template, "inputs": {"country": "France"}, "max_new_tokens": 8}

    rendered = client.post("/icl/render", json=asked | {"max_new_tokens": 8}).json()
    assert rendered["prompts"][0]["prompt"] == written(tokenizer, messages)
    answer = client.post("/icl/generate", json=asked).json()
    expected = generate(client, messages=messages, max_new_tokens=8)
    assert answer["completions"] == expected["completions"]
