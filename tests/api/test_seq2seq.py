"""An encoder-decoder model over HTTP, on an engine with two windows: what is asked and refused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.support import Served, error_of, serving, until, until_in_flight
from tests.api.test_openai import MESSAGES, complete, refusal, texts
from tests.fake_engine import FakeEngine
from tests.server.requests import Streamed


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


async def test_inspection_begins_behind_a_forced_token() -> None:
    """Nobody chooses that one; what a request starts the decoder with is in its place."""
    async with serving(FakeEngine(encoder_window=12, forced_bos_token_id=ord("<"))) as served:
        assert (await served.get("/info")).json()["forced_bos_token_id"] == ord("<")
        for asked, first in (({}, "<"), ({"decoder_prompt": "so"}, "s")):
            answer = (await served.inspect("hello", **asked)).json()
            assert answer["tokens"][0]["token"] == first
            assert answer["prompt_tokens"] == len("hello" + asked.get("decoder_prompt", ""))


@pytest.mark.parametrize("prompt", [["hello", "bye"], [list(b"hello"), list(b"bye")]])
async def test_openais_completions_are_those_of_generate(served: Served, prompt: Any) -> None:
    response = await complete(served, prompt=prompt, decoder_prompt="so", max_tokens=5)

    assert texts(response) == ["so:he", "so:by"]


async def test_openais_tokens_are_the_encoders(served: Served) -> None:
    for path, body in (
        ("/tokenize", {"prompt": "hello"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        assert (await served.client.post(path, json=body)).status_code == 200
    models = (await served.get("/v1/models")).json()["data"]
    assert [(each["id"], each["max_model_len"]) for each in models] == [("echo", 16)]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (
            {"prompt": "a" * 13},
            "prompt",
            "the prompt has 13 tokens; the encoder's window is 12: shorten the prompt by 1 tokens",
        ),
        (
            {"prompt": [ord("a")] * 13},
            "prompt",
            "the prompt has 13 tokens; the encoder's window is",
        ),
        ({"prompt": ["a", "a" * 13]}, "prompt", "prompt 1 has 13 tokens"),
        ({"max_tokens": 16}, "max_tokens", f"max_tokens is 16 and {STARTS}: lower max_tokens to"),
        (
            {"decoder_prompt": "b" * 15},
            "decoder_prompt",
            f"decoder_prompt has 15 tokens, max_tokens is 1 and {STARTS}: shorten decoder_prompt",
        ),
    ],
)
async def test_what_does_not_fit_by_openais_protocol(
    served: Served, body: dict[str, Any], param: str, message: str
) -> None:
    response = await complete(served, **{"prompt": "a", "max_tokens": 1} | body)

    assert refusal(response) == (400, "context_length_exceeded", param)
    assert response.json()["error"]["message"].startswith(message)


async def test_a_token_that_the_vocabulary_lacks_reaches_no_encoder(served: Served) -> None:
    response = await complete(served, prompt=[5, 257])

    assert refusal(response) == (400, "invalid_request", "prompt")
    assert "token id 257" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, "messages"),
        ("/v1/responses", {"input": "hello"}, "input"),
        ("/tokenize", {"messages": MESSAGES}, "messages"),
    ],
)
async def test_there_is_no_chat(
    served: Served, path: str, body: dict[str, Any], param: str
) -> None:
    response = await served.client.post(path, json=body)

    assert refusal(response) == (400, "invalid_request", param)
    assert response.json()["error"]["message"] == (
        "an encoder-decoder model has no chat template: write the whole prompt yourself and send "
        "it as prompt, to POST /v1/completions for an answer"
    )


@pytest.mark.parametrize(
    ("field", "value"), [("echo", True), ("prompt_logprobs", 0), ("use_beam_search", True)]
)
async def test_what_has_no_meaning_for_an_encoder(served: Served, field: str, value: Any) -> None:
    response = await complete(served, **{field: value})

    assert refusal(response) == (400, "invalid_request", field)
    assert "is not for encoder-decoder models, because" in response.json()["error"]["message"]


async def test_what_is_not_asked_for_has_no_meaning_either(served: Served) -> None:
    assert texts(await complete(served, echo=False, max_tokens=2)) == ["he"]


async def test_a_template_makes_openais_prompts(served: Served) -> None:
    template = {
        "input_variables": ["text"],
        "example_format": "{{ text }}{{ output }}",
        "query_format": "{{ text }}",
    }
    asked = {"template": template, "max_tokens": 3}
    assert texts(await complete(served, prompt="hello", **asked)) == ["hel"]

    refused = await complete(served, prompt="hello", decoder_prompt="so", **asked)
    assert refusal(refused) == (400, "invalid_request", "decoder_prompt")
    much = await complete(served, prompt="hello", **asked | {"max_tokens": 16})
    assert refusal(much)[:2] == (400, "context_length_exceeded")


async def test_other_models_have_no_decoder_prompt() -> None:
    async with serving(FakeEngine()) as served:
        for response in (
            await served.generate("hello", decoder_prompt="so"),
            await served.inspect("hello", decoder_prompt="so"),
        ):
            assert error_of(response) == (422, "invalid_request", "decoder_prompt")
        response = await complete(served, decoder_prompt="so")
        assert refusal(response) == (400, "invalid_request", "decoder_prompt")


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


async def test_beams_give_the_best_first(served: Served) -> None:
    response = await served.generate("hello", num_beams=4, n=3, max_new_tokens=10)

    assert response.status_code == 200, response.text
    answer = response.json()
    assert [each["text"] for each in answer["completions"]] == ["hello", "hell", "hel"]
    assert [each["index"] for each in answer["completions"]] == [0, 1, 2]
    # Those that are given: each has an end.
    assert answer["usage"]["completion_tokens"] == 6 + 5 + 4
    controls = answer["sampling"]
    assert (controls["greedy"], controls["num_beams"], controls["length_penalty"]) == (False, 4, 1)


async def test_a_stream_of_beams_has_a_piece_for_each(served: Served) -> None:
    body = {"prompt": "hello", "num_beams": 2, "n": 2, "max_new_tokens": 10, "stream": True}
    response = await served.client.post("/generate", json=body)

    streamed = Streamed.of_lines(response.text.splitlines())
    for index, text in enumerate(("hello", "hell")):
        pieces = [event["text"] for event in streamed.of(index=index)]
        assert [piece for piece in pieces if piece] == [text]


async def test_a_request_counts_as_its_beams(engine: FakeEngine) -> None:
    async with serving(engine, max_sequences_in_flight=8, max_running_sequences=4) as served:
        refused = await served.generate(["a", "b", "c"], num_beams=3, max_new_tokens=5)
        assert error_of(refused) == (422, "invalid_request", "num_beams")
        assert "9 completions (prompts times num_beams)" in refused.json()["error"]["message"]

        engine.hold()
        running = asyncio.create_task(served.generate("a", num_beams=4, max_new_tokens=5))
        await until_in_flight(served, 4)
        await until(lambda: len(engine.open) == 1)
        assert served.admission.places.num_held == 4
        waiting = asyncio.create_task(served.generate("b", max_new_tokens=5))
        await until_in_flight(served, 5)
        full = await served.generate("c", num_beams=4, max_new_tokens=5)
        assert error_of(full)[:2] == (503, "server_full")
        engine.release()
        assert (await running).status_code == (await waiting).status_code == 200
        assert (served.admission.sequences_in_flight, served.admission.places.num_held) == (0, 0)


async def test_who_leaves_a_beam_search_leaves_no_place_behind(
    served: Served, engine: FakeEngine
) -> None:
    engine.hold()
    leaving = asyncio.create_task(served.generate("a", num_beams=4, max_new_tokens=5))
    await until(lambda: len(engine.open) == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    await until_in_flight(served, 0)
    assert served.admission.places.num_held == 0


async def test_a_template_has_beams_unless_a_request_chooses_otherwise(served: Served) -> None:
    template = {
        "input_variables": ["text"],
        "example_format": "{{ text }}{{ output }}",
        "query_format": "{{ text }}",
        "num_beams": 2,
        "length_penalty": 2.0,
        "max_new_tokens": 5,
    }
    body = {"template": template, "inputs": {"text": "12"}}
    searched = await served.client.post("/icl/generate", json=body)
    sampled = await served.client.post("/icl/generate", json=body | {"temperature": 0.5})

    assert searched.json()["sampling"]["num_beams"] == 2
    assert searched.json()["sampling"]["length_penalty"] == 2.0
    assert sampled.json()["sampling"]["num_beams"] == 1


async def test_other_models_have_no_beams() -> None:
    async with serving(FakeEngine()) as served:
        response = await served.generate("hello", num_beams=2)

    assert error_of(response) == (422, "invalid_request", "num_beams")
    assert response.json()["error"]["message"] == (
        "num_beams is for encoder-decoder models, and this one has no encoder: leave it out"
    )


async def test_openais_protocol_takes_no_template_with_beams() -> None:
    template = {
        "input_variables": ["text"],
        "example_format": "{{ text }}{{ output }}",
        "query_format": "{{ text }}",
        "num_beams": 2,
    }
    async with serving(FakeEngine()) as served:
        await served.client.put("/icl/templates/beams", json=template)
        body = {"model": "echo", "prompt": "hello", "template": "beams"}
        response = await served.client.post("/v1/completions", json=body)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "template"
    assert "POST /icl/generate" in response.json()["error"]["message"]
