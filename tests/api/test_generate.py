"""POST /generate without `stream`: what an answer holds."""

import asyncio
import re
from typing import Any

import pytest

from tests.api.support import Served, until, until_in_flight
from tests.fake_engine import END_OF_SEQUENCE, FakeEngine

GREEDY: dict[str, Any] = {
    "greedy": True,
    "max_new_tokens": 128,
    "min_new_tokens": 0,
    "temperature": 0.0,
    "top_k": None,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "stop": [],
    "n": 1,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "ignore_eos": False,
    "json_schema": None,
    "regex": None,
    "choice": None,
}


async def test_the_whole_answer(served: Served) -> None:
    response = await served.generate("hello")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    timings = answer.pop("timings")
    assert answer == {
        "id": response.headers["x-request-id"],
        "model": "echo",
        "completions": [
            {"prompt_index": 0, "index": 0, "text": "hello", "finish_reason": "stop"},
        ],
        "sampling": GREEDY,
        "usage": {
            "prompt_tokens": 5,
            "virtual_tokens": 0,
            "completion_tokens": 6,
            "cached_tokens": 0,
        },
    }
    assert list(timings) == ["queue", "ttft", "total"]
    assert 0.0 <= timings["queue"] <= timings["ttft"] <= timings["total"]


async def test_prompts_are_answered_in_order(served: Served) -> None:
    answer = (await served.generate(["a longer one", "b", "cc"])).json()
    assert [(c["prompt_index"], c["index"], c["text"]) for c in answer["completions"]] == [
        (0, 0, "a longer one"),
        (1, 0, "b"),
        (2, 0, "cc"),
    ]
    assert answer["usage"] == {
        "prompt_tokens": 15,
        "virtual_tokens": 0,
        "completion_tokens": 18,
        "cached_tokens": 0,
    }


async def test_n_completions_of_each_prompt(served: Served) -> None:
    answer = (await served.generate(["a", "b"], n=3, temperature=1, seed=1)).json()
    keys = [(c["prompt_index"], c["index"]) for c in answer["completions"]]
    assert keys == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert answer["usage"]["prompt_tokens"] == 2, "a prompt counts once, whatever n is"


async def test_chat_template_and_system(served: Served) -> None:
    plain = (await served.generate("hi", use_chat_template=True)).json()
    assert plain["completions"][0]["text"] == "[user]hi[assistant]"
    both = (await served.generate("hi", use_chat_template=True, system="be kind")).json()
    assert both["completions"][0]["text"] == "[system]be kind[user]hi[assistant]"


@pytest.mark.parametrize(
    ("controls", "text", "finish_reason", "completion_tokens"),
    [
        ({"max_new_tokens": 3}, "hel", "length", 3),
        ({"max_new_tokens": 11}, "hello world", "length", 11),
        ({"max_new_tokens": 12}, "hello world", "stop", 12),
        ({"stop": "o w"}, "hell", "stop", 7),
        ({"stop": ["xyz", "world"]}, "hello ", "stop", 11),
        ({"stop": ["world!"]}, "hello world", "stop", 12),
        ({"stop": ["h"]}, "", "stop", 1),
        ({"min_new_tokens": 13, "max_new_tokens": 20}, "hello worldhe", "stop", 14),
        ({"ignore_eos": True, "max_new_tokens": 14}, "hello worldhel", "length", 14),
        ({"ignore_eos": True, "stop": "<|end|>"}, "hello world", "stop", 12),
    ],
)
async def test_where_a_completion_ends(
    served: Served,
    controls: dict[str, object],
    text: str,
    finish_reason: str,
    completion_tokens: int,
) -> None:
    answer = (await served.generate("hello world", **controls)).json()
    completion = answer["completions"][0]
    assert (completion["text"], completion["finish_reason"]) == (text, finish_reason)
    assert answer["usage"]["completion_tokens"] == completion_tokens


async def test_seeds_repeat_and_differ(served: Served) -> None:
    async def text(seed: int) -> str:
        answer = (await served.generate("hello world", temperature=1, seed=seed)).json()
        assert answer["sampling"]["seed"] == seed
        found: str = answer["completions"][0]["text"]
        return found

    assert await text(1) == await text(1)
    assert len({await text(seed) for seed in range(8)}) > 1


async def test_the_effective_sampling_is_echoed(served: Served) -> None:
    given = {
        "max_new_tokens": 7,
        "min_new_tokens": 2,
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 9,
        "stop": ["\n\n"],
        "n": 2,
        "ignore_eos": True,
    }
    answer = (await served.generate(**given)).json()
    assert answer["sampling"] == GREEDY | given | {"greedy": False}


async def test_a_filter_turns_random_sampling_on(served: Served) -> None:
    answer = (await served.generate(top_k=1)).json()
    assert answer["sampling"] == GREEDY | {"greedy": False, "temperature": 1.0, "top_k": 1}
    assert answer["completions"][0]["text"] == "hello", "top_k 1 is greedy decoding"


async def test_token_ids_where_asked_for(served: Served) -> None:
    answer = (await served.generate("hé", return_token_ids=True)).json()
    assert answer["completions"][0]["token_ids"] == [*"hé".encode(), END_OF_SEQUENCE]


async def test_logprobs_where_asked_for(served: Served) -> None:
    answer = (await served.generate("hi", logprobs=2, max_new_tokens=1)).json()
    (position,) = answer["completions"][0]["logprobs"]
    assert (position["token_id"], position["token"]) == (ord("h"), "h")
    assert [token["token_id"] for token in position["top"]] == [ord("h"), 0]
    assert position["logprob"] == position["top"][0]["logprob"] < 0
    assert position["logprob"] > position["top"][1]["logprob"]


async def test_logprobs_zero_tells_the_chosen_tokens_only(served: Served) -> None:
    answer = (await served.generate("hi", logprobs=0)).json()
    positions = answer["completions"][0]["logprobs"]
    assert [(position["token"], position["top"]) for position in positions] == [
        ("h", []),
        ("i", []),
        ("", []),
    ]


@pytest.mark.parametrize("given", ["a", "A.b_c:d-1", "x" * 128])
async def test_a_valid_request_id_is_kept(served: Served, given: str) -> None:
    response = await served.client.post(
        "/generate", json={"prompt": "hello"}, headers={"x-request-id": given}
    )
    assert response.headers["x-request-id"] == response.json()["id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "é", "a/b", '"', "%0a"])
async def test_any_other_request_id_is_replaced(served: Served, given: str) -> None:
    response = await served.client.post(
        "/generate", json={"prompt": "hello"}, headers=[(b"x-request-id", given.encode())]
    )
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.json()["id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/health/live", "/nothing", "/generate", "/metrics"])
async def test_every_answer_has_a_request_id(served: Served, path: str) -> None:
    response = await served.client.get(path, headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"


async def test_requests_run_side_by_side(served: Served, engine: FakeEngine) -> None:
    engine.hold()
    waiting = [asyncio.create_task(served.generate(f"number {i}")) for i in range(5)]
    await until(lambda: len(engine.open) == 5)
    engine.release()
    answers = [(await task).json() for task in waiting]
    texts = [answer["completions"][0]["text"] for answer in answers]
    assert texts == [f"number {i}" for i in range(5)]
    assert engine.open == []
    assert engine.left_early == []


async def test_a_cancelled_request_leaves_the_engine(served: Served, engine: FakeEngine) -> None:
    engine.hold()
    leaving = asyncio.create_task(served.generate(["a", "b"]))
    staying = asyncio.create_task(served.generate("c"))
    await until(lambda: len(engine.open) == 3)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await until_in_flight(served, 1)
    assert len(engine.left_early) == 2
    engine.release()
    assert (await staying).json()["completions"][0]["text"] == "c"
    assert await served.requests("generate", "aborted") == 1
