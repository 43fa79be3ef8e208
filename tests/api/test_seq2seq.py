"""An encoder-decoder model over HTTP, on an engine with two windows: what is asked and refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.support import Served, error_of, serving
from tests.fake_engine import FakeEngine


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine(context_window=16, encoder_window=12)


@pytest.fixture
async def served(engine: FakeEngine) -> AsyncIterator[Served]:
    async with serving(engine) as it:
        yield it


async def test_each_prompt_starts_the_decoder_alike(served: Served) -> None:
    response = await served.generate(["hello", "bye"], decoder_prompt="so", max_new_tokens=5)

    assert response.status_code == 200, response.text
    assert [each["text"] for each in response.json()["completions"]] == ["so:he", "so:by"]
    assert response.json()["usage"]["prompt_tokens"] == len("hellobyesoso")


async def test_info_has_both_windows(served: Served) -> None:
    info = (await served.get("/info")).json()

    assert (info["encoder_window"], info["context_window"]) == (12, 16)


STARTS = "the decoder starts with a token of its own; its context window is 16"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (
            {"prompt": "a" * 13, "max_new_tokens": 1},
            "prompt",
            "the prompt has 13 tokens; the encoder's window is 12: shorten the prompt by 1 tokens",
        ),
        (
            {"prompt": "a" * 12, "max_new_tokens": 16},
            "max_new_tokens",
            f"max_new_tokens is 16 and {STARTS}: lower max_new_tokens to 15",
        ),
        (
            {"prompt": "a", "decoder_prompt": "b" * 5, "max_new_tokens": 11},
            "max_new_tokens",
            f"decoder_prompt has 5 tokens, max_new_tokens is 11 and {STARTS}: lower",
        ),
        (
            {"prompt": "a", "decoder_prompt": "b" * 15, "max_new_tokens": 1},
            "decoder_prompt",
            f"decoder_prompt has 15 tokens, max_new_tokens is 1 and {STARTS}: shorten",
        ),
    ],
)
async def test_what_does_not_fit(
    served: Served, body: dict[str, Any], param: str, message: str
) -> None:
    response = await served.client.post("/generate", json=body)

    assert error_of(response) == (422, "context_window_exceeded", param)
    assert response.json()["error"]["message"].startswith(message)


async def test_a_full_encoder_leaves_the_decoder_its_window(served: Served) -> None:
    response = await served.generate("a" * 12, max_new_tokens=15)

    assert response.status_code == 200, response.text


async def test_openais_protocol_is_refused(served: Served) -> None:
    body = {"model": "echo", "prompt": "hello"}
    response = await served.client.post("/v1/completions", json=body)

    assert response.status_code == 400
    assert "POST /generate" in response.json()["error"]["message"]


async def test_other_models_have_no_decoder_prompt() -> None:
    async with serving(FakeEngine()) as served:
        for response in (
            await served.generate("hello", decoder_prompt="so"),
            await served.inspect("hello", decoder_prompt="so"),
        ):
            assert error_of(response) == (422, "invalid_request", "decoder_prompt")


async def test_examples_fit_into_the_encoder_alone(served: Served) -> None:
    template = {
        "input_variables": ["text"],
        "example_format": "{{ text }}{{ output }}",
        "query_format": "{{ text }}",
        "separator": "",
        "examples": [{"text": "ab", "output": "cd"}, {"text": "ef", "output": "gh"}],
    }
    body = {"template": template, "inputs": {"text": "1234"}, "max_new_tokens": 15}
    response = await served.client.post("/icl/generate", json=body)

    assert response.status_code == 200, response.text
    assert response.json()["prompts"][0]["shots"] == 2
    assert response.json()["prompts"][0]["prompt_tokens"] == 12

    body = {"template": template, "inputs": {"text": "1" * 13}, "max_new_tokens": 1}
    response = await served.client.post("/icl/generate", json=body)
    assert error_of(response) == (422, "context_window_exceeded", "inputs")
    assert "the encoder's window is 12" in response.json()["error"]["message"]


async def test_a_template_has_no_decoder_prompt(served: Served) -> None:
    template = {"input_variables": ["text"], "query_format": "{{ text }}", "decoder_prompt": "so"}
    body = {"template": template, "inputs": {"text": "12"}, "max_new_tokens": 3}
    response = await served.client.post("/icl/generate", json=body)

    assert error_of(response)[:2] == (422, "invalid_request")
    assert "decoder_prompt" in response.json()["error"]["message"]
