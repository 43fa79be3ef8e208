"""Server-sent events: their content. (How they arrive is tested on a real process.)"""

import json
from typing import Any

import httpx
import pytest

from app.errors import EngineDied
from tests.api.support import Served, error_of
from tests.fake_engine import FakeEngine


def _events(response: httpx.Response) -> list[str]:
    assert response.text.endswith("\n\n")
    return response.text.removesuffix("\n\n").split("\n\n")


def _data(event: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(event.removeprefix("data: "))
    return data


async def test_the_whole_stream(served: Served) -> None:
    response = await served.generate("hi", stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    *pieces, ending, done = _events(response)
    assert pieces == [
        'data: {"prompt_index":0,"index":0,"text":"h"}',
        'data: {"prompt_index":0,"index":0,"text":"i"}',
    ]
    last = _data(ending)
    assert sorted(last.pop("timings")) == ["queue", "total", "ttft"]
    assert last.pop("sampling")["greedy"] is True
    assert last == {
        "prompt_index": 0,
        "index": 0,
        "text": "",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 2,
            "virtual_tokens": 0,
            "completion_tokens": 3,
            "cached_tokens": 0,
        },
        "id": response.headers["x-request-id"],
        "model": "echo",
    }
    assert done == "data: [DONE]"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "naïve 😀 日本語"},
        {"prompt": "naïve 😀 日本語", "max_new_tokens": 8},
        {"prompt": ["one", "two and more", "3"]},
        {"n": 4, "temperature": 1, "seed": 3},
        {"prompt": ["one", "two"], "n": 3, "top_p": 0.9, "seed": 3},
        {"prompt": "hello world", "stop": ["o wo", "xx"]},
        {"prompt": "hello world", "stop": ["lo work", "d."]},
        {"prompt": "a\n\ndata: [DONE]\n\nb"},
        {"logprobs": 2, "return_token_ids": True, "prompt": "é日", "stop": "zzz"},
        {"use_chat_template": True, "system": "be kind"},
    ],
)
async def test_joined_events_equal_the_answer_without_stream(
    served: Served, fields: dict[str, Any]
) -> None:
    whole = (await served.generate(**fields)).json()
    *events, done = _events(await served.generate(**fields, stream=True))
    assert done == "data: [DONE]"
    assert _joined([_data(event) for event in events]) == whole["completions"]


def _joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The completions that a stream tells, in the form of an answer without `stream`."""
    completions: dict[tuple[int, int], dict[str, Any]] = {}
    for event in events:
        key = (event["prompt_index"], event["index"])
        first = {"prompt_index": key[0], "index": key[1], "text": ""}
        completion = completions.setdefault(key, first)
        assert "finish_reason" not in completion, "nothing follows the ending"
        completion["text"] += event["text"]
        for name in ("token_ids", "logprobs"):
            if name in event:
                completion[name] = completion.get(name, []) + event[name]
        if "finish_reason" in event:
            completion["finish_reason"] = event["finish_reason"]
    return [completions[key] for key in sorted(completions)]


async def test_no_event_splits_a_character(served: Served) -> None:
    *events, _ = _events(await served.generate("é日😀", stream=True))
    assert [_data(event)["text"] for event in events] == ["é", "日", "😀", ""]


async def test_a_stop_string_never_leaks_in_part(served: Served) -> None:
    *events, _ = _events(await served.generate("one STOP two", stop="STOP", stream=True))
    texts = [_data(event)["text"] for event in events]
    assert not any(set("STOP") & set(text) for text in texts)
    assert "".join(texts) == "one "


async def test_usage_is_of_each_completion(served: Served) -> None:
    *events, _ = _events(await served.generate(["a", "long"], stream=True))
    endings = [data for event in events if "usage" in (data := _data(event))]
    assert {ending["prompt_index"]: ending["usage"] for ending in endings} == {
        0: {"prompt_tokens": 1, "virtual_tokens": 0, "completion_tokens": 2, "cached_tokens": 0},
        1: {"prompt_tokens": 4, "virtual_tokens": 0, "completion_tokens": 5, "cached_tokens": 0},
    }


async def test_an_error_after_the_first_chunk_is_an_event(
    served: Served, engine: FakeEngine
) -> None:
    engine.fail(EngineDied("the engine has died: try again"), at_chunk=2)
    response = await served.generate("hello", stream=True)
    assert response.status_code == 200
    assert _events(response) == [
        'data: {"prompt_index":0,"index":0,"text":"h"}',
        'data: {"prompt_index":0,"index":0,"text":"e"}',
        (
            'event: error\ndata: {"error":{"type":"engine_died",'
            '"message":"the engine has died: try again","param":null}}'
        ),
    ]
    assert served.admission.sequences_in_flight == 0
    assert await served.requests("generate", "failed") == 1


async def test_an_unexpected_error_event_tells_nothing(served: Served, engine: FakeEngine) -> None:
    engine.fail(RuntimeError("the password is swordfish"), at_chunk=1)
    response = await served.generate("hello", stream=True)
    event, data = _events(response)[-1].split("\n")
    assert event == "event: error"
    assert _data(data)["error"]["type"] == "internal_error"
    assert "swordfish" not in response.text
    assert "[DONE]" not in response.text


async def test_an_error_before_the_first_chunk_is_a_status(
    served: Served, engine: FakeEngine
) -> None:
    engine.fail(EngineDied("the engine has died: try again"), at_chunk=0)
    response = await served.generate("hello", stream=True)
    assert error_of(response) == (503, "engine_died", None)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["retry-after"] == "30"


async def test_bad_input_is_a_status(served: Served) -> None:
    response = await served.generate("a" * 300, stream=True)
    assert error_of(response) == (422, "context_window_exceeded", "prompt")
