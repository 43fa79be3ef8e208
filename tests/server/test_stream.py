"""Server-sent events from the real engine over a real socket."""

from typing import Any

import httpx
import pytest

from tests.server.requests import generate, stream, text_of

COUNTING = "Count: 1, 2, 3, 4,"

BODIES: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "Once upon a time", "max_new_tokens": 40},
    "chat": {"prompt": "Name three colors.", "use_chat_template": True, "max_new_tokens": 40},
    "several bytes a character": {"prompt": "你好，世界。今天", "max_new_tokens": 40},
    "stop string": {"prompt": COUNTING, "max_new_tokens": 40, "stop": [" 8, 9", "11"]},
    "one-character stop": {"prompt": COUNTING, "max_new_tokens": 40, "stop": ["7"]},
    "stop never met": {"prompt": COUNTING, "max_new_tokens": 20, "stop": ["a long wait for this"]},
    **{
        f"hot, seed {seed}": {
            "prompt": "🙂 Ünïcödé 世界",
            "temperature": 2.0,
            "seed": seed,
            "max_new_tokens": 60,
        }
        for seed in range(8)
    },
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_pieces_join_to_the_text_of_the_same_request_without_stream(
    client: httpx.Client, body: dict[str, Any]
) -> None:
    collected = generate(client, **body)

    streamed = stream(client, **body)

    *pieces, last = streamed.of()
    assert streamed.text() == text_of(collected)
    assert streamed.done
    assert last["finish_reason"] == collected["completions"][0]["finish_reason"]
    assert last["usage"]["prompt_tokens"] == collected["usage"]["prompt_tokens"]
    assert last["usage"]["completion_tokens"] == collected["usage"]["completion_tokens"]
    assert last["sampling"] == collected["sampling"]
    assert all("finish_reason" not in piece for piece in pieces)
    assert all(piece["text"] for piece in pieces), "a piece without text"


def test_text_comes_piece_by_piece(client: httpx.Client) -> None:
    streamed = stream(client, prompt="Once upon a time", max_new_tokens=32)

    assert len(streamed.of()) > 16


def test_a_stop_string_never_leaks_in_part(client: httpx.Client) -> None:
    streamed = stream(client, prompt=COUNTING, max_new_tokens=40, stop=[" 8, 9"])

    assert streamed.text() == " 5, 6, 7,"
    text_so_far = ""
    for event in streamed.of():
        text_so_far += event["text"]
        assert " 5, 6, 7,".startswith(text_so_far)


def test_token_ids_and_logprobs_stream_too(client: httpx.Client) -> None:
    body = {
        "prompt": "你好，世界。今天",
        "max_new_tokens": 24,
        "return_token_ids": True,
        "logprobs": 2,
    }
    (collected,) = generate(client, **body)["completions"]

    pieces = [event for event in stream(client, **body).of() if "finish_reason" not in event]

    assert [i for piece in pieces for i in piece["token_ids"]] == collected["token_ids"]
    streamed_ids = [p["token_id"] for piece in pieces for p in piece["logprobs"]]
    assert streamed_ids == collected["token_ids"]


def test_an_error_before_the_first_byte_has_its_status(client: httpx.Client) -> None:
    response = client.post(
        "/generate", json={"prompt": "Hi", "max_new_tokens": 100_000, "stream": True}
    )

    assert response.status_code == 422
    assert response.json()["error"]["type"] == "context_window_exceeded"
