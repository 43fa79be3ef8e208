"""OpenAI's protocol in process: names of models, what is refused, and what all requests share."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.support import (
    Served,
    add_lora,
    add_soft_prompt,
    serving,
    until,
    until_in_flight,
    until_waiting,
)
from tests.fake_engine import FakeEngine
from tests.key_files import new_key

MESSAGES = [{"role": "user", "content": "hello"}]
TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
    "examples": [{"text": "a", "output": "b"}],
    "max_new_tokens": 3,
}


async def complete(served: Served, prompt: Any = "hello", **fields: Any) -> httpx.Response:
    return await served.client.post("/v1/completions", json={"prompt": prompt, **fields})


async def chat(served: Served, messages: Any = MESSAGES, **fields: Any) -> httpx.Response:
    body = {"messages": messages, **fields}
    return await served.client.post("/v1/chat/completions", json=body)


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and param of the one error body."""
    error = response.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    return response.status_code, error["code"], error["param"]


def message(response: httpx.Response) -> str:
    told: str = response.json()["error"]["message"]
    return told


# Models.


async def test_a_model_is_the_base_an_adapter_a_soft_prompt_or_a_pair(served: Served) -> None:
    lora, soft = await add_lora(served, "tone"), await add_soft_prompt(served, "task")
    marks = {
        "echo": "",
        "tone": f"<{lora[:8]}>",
        f"tone@{lora[:6]}": f"<{lora[:8]}>",
        "task": f"<{soft[:8]}>",
        "tone+task": f"<{lora[:8]}><{soft[:8]}>",
        f"task+tone@{lora}": f"<{lora[:8]}><{soft[:8]}>",
    }
    for model, mark in marks.items():
        response = await complete(served, model=model, max_tokens=len(mark) + 2)
        assert texts(response) == [f"{mark}he"]


async def test_the_answer_says_what_answered_and_takes_it_for_a_model(served: Served) -> None:
    lora, soft = await add_lora(served, "tone"), await add_soft_prompt(served, "task")
    first = await complete(served, model="task+tone")
    named = first.json()["model"]
    name, _, rest = named.partition("@")
    assert (name, rest[: len(lora)], soft in rest) == ("tone", lora, True)

    again = await complete(served, model=named)
    assert (texts(again), again.json()["model"]) == (texts(first), named)
    assert (await complete(served)).json()["model"] == "echo"


async def test_an_unknown_model_says_which_are_near(served: Served) -> None:
    await add_lora(served, "support-intent")
    for model in ("support-intend", "support-intend+x"):
        response = await complete(served, model=model)
        assert refusal(response) == (404, "model_not_found", "model")
        assert "did you mean support-intent?" in message(response)
    assert "GET /v1/models lists them" in message(await complete(served, model="zzz"))
    assert refusal(await complete(served, model="support-intent@000000"))[:2] == (
        404,
        "model_not_found",
    )


async def test_two_adapters_of_one_kind_are_no_pair(served: Served) -> None:
    await add_lora(served, "one")
    await add_lora(served, "two", seed=1)
    response = await complete(served, model="one+two")
    assert refusal(response) == (400, "invalid_request", "model")


async def test_the_list_of_models(served: Served) -> None:
    lora, soft = await add_lora(served, "tone"), await add_soft_prompt(served, "task")
    listed = (await served.get("/v1/models")).json()
    models = listed["data"]
    told = [(each["id"], each["kind"], each["parent"]) for each in models]

    assert listed["object"] == "list"
    assert told == [
        ("echo", "base", None),
        ("task", "soft_prompt", "echo"),
        ("tone", "lora", "echo"),
    ]
    assert [(each["version"] or "")[:12] for each in models] == ["", soft, lora]
    assert {each["object"] for each in models} == {"model"}
    for each in models:
        assert (await served.get(f"/v1/models/{each['id']}")).json() == each
    pair = (await served.get("/v1/models/tone+task")).json()
    assert (pair["id"], pair["kind"], pair["parent"]) == ("tone+task", "pair", "echo")
    assert refusal(await served.get("/v1/models/none")) == (404, "model_not_found", "model")


async def test_a_key_sees_and_uses_its_own_adapters_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    admin = new_key(path, "root", "admin")
    bound = new_key(path, "bot", adapters=["mine*"])
    async with serving(keys_file=path) as served:
        served.client.headers.update(admin)
        await add_lora(served, "mine-1")
        await add_lora(served, "other", seed=1)
        served.client.headers.update(bound)
        models = (await served.get("/v1/models")).json()["data"]
        assert [each["id"] for each in models] == ["echo", "mine-1"]
        assert texts(await complete(served, model="mine-1"))
        for model in ("other", "other+mine-1", "nothing"):
            response = await complete(served, model=model)
            assert refusal(response) == (403, "not_permitted", "model")
        assert refusal(await served.get("/v1/models/other"))[0] == 403
        assert "did you mean mine-1?" in message(await complete(served, model="mine-2"))


# Fields.


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": "a", "guided_regex": "b"}, "guided_regex"),
        ("/v1/completions", {"prompt": "a", "best_of": 2}, "best_of"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "max_new_tokens": 2}, "max_new_tokens"),
        ("/v1/completions", {"prompt": "a", "prompt_embeds": "AAAA"}, "prompt_embeds"),
        ("/v1/completions", {"prompt": "a", "logprobs": 21}, "logprobs"),
        ("/v1/completions", {"prompt": "a", "logprobs": -1}, "logprobs"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "2"}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "store": True}, "store"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [[]]}, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, "prompt"),
        ("/v1/completions", {"prompt": "a\x00"}, "prompt"),
        ("/v1/completions", {"prompt": "a", "n": 17}, "n"),
        ("/v1/completions", {"prompt": ["a"] * 33}, "prompt"),
        ("/v1/completions", {"prompt": "a", "stop": ["b"] * 9}, "stop"),
        ("/v1/completions", {"prompt": "a", "shots": 1}, "shots"),
        ("/v1/completions", {"prompt": "a", "length_penalty": 2.0}, "length_penalty"),
        ("/v1/completions", {"prompt": "a", "use_beam_search": True, "top_p": 0.5}, "top_p"),
        ("/v1/completions", {"prompt": ["a", "b"], "use_beam_search": True}, "prompt"),
        ("/v1/completions", {"prompt": "a", "timeout_seconds": 4000.0}, "timeout_seconds"),
        ("/v1/completions", {"prompt": "a", "priority": 1}, "priority"),
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "tool"}]}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "chat_template": "{{ x }}"},
            "chat_template",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "bot", "content": "a"}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "text": "a"}]}, "messages"),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "file:///a"}}],
                    }
                ]
            },
            "messages",
        ),
        ("/v1/chat/completions", {"messages": MESSAGES, "top_logprobs": 21}, "top_logprobs"),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 1},
            "max_tokens",
        ),
        ("/v1/responses", {}, "input"),
        ("/v1/responses", {"input": "a", "background": True}, "background"),
        ("/v1/responses", {"input": "a", "store": True}, "store"),
        ("/v1/responses", {"input": "a", "previous_response_id": "b"}, "previous_response_id"),
        ("/v1/responses", {"input": "a", "top_logprobs": 2}, "top_logprobs"),
        ("/v1/responses", {"input": [{"type": "input_image"}]}, "input"),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input",
        ),
    ],
)
async def test_what_nobody_honours_is_refused(
    served: Served, path: str, body: dict[str, Any], param: str
) -> None:
    response = await served.client.post(path, content=json.dumps(body), headers=JSON)
    assert refusal(response) == (400, "invalid_request", param)


JSON = {"content-type": "application/json"}


async def test_an_unknown_field_says_which_is_near(served: Served) -> None:
    response = await complete(served, max_token=3)
    assert message(response) == "there is no field max_token: did you mean max_tokens?"


async def test_what_a_client_keeps_for_itself_changes_nothing(served: Served) -> None:
    plain = await complete(served, max_tokens=3)
    tagged = await complete(
        served, max_tokens=3, user="u", metadata={"a": "b"}, service_tier="auto", store=False
    )
    assert texts(tagged) == texts(plain) == ["hel"]


async def test_null_is_the_default(served: Served) -> None:
    response = await complete(served, max_tokens=None, n=None, stop=None, stream=None, model=None)
    assert texts(response) == ["hello"]


# Prompts.


async def test_prompts_are_texts_or_tokens_in_a_list_or_alone(served: Served) -> None:
    for prompt, expected in (
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99, 100]], ["ab", "cd"]),
    ):
        assert texts(await complete(served, prompt)) == expected


async def test_a_template_makes_the_prompts(served: Served) -> None:
    await served.client.put("/icl/templates/equal", json=TEMPLATE)
    rendered = await served.client.post(
        "/icl/render", json={"template": "equal", "inputs": {"text": "x"}, "shots": 1}
    )
    text = rendered.json()["prompts"][0]["prompt"]
    fields = {"template": "equal", "shots": 1}

    assert texts(await complete(served, "x", **fields)) == [text[:3]]
    assert texts(await complete(served, "x", **fields, max_tokens=5)) == [text[:5]]
    by_name = {"inputs": [{"text": "x"}], **fields}
    response = await served.client.post("/v1/completions", json=by_name)
    assert texts(response) == [text[:3]]
    both = await complete(served, "x", **by_name)
    assert refusal(both) == (400, "invalid_request", "inputs")
    tokens = await complete(served, [1, 2], **fields)
    assert refusal(tokens) == (400, "invalid_request", "prompt")
    unknown = await complete(served, "x", template="equals")
    assert refusal(unknown) == (404, "template_not_found", "template")
    assert "did you mean equal?" in message(unknown)


async def test_a_template_of_several_inputs_takes_them_by_name(served: Served) -> None:
    template = {
        "input_variables": ["a", "b"],
        "example_format": "{{ a }}{{ b }}{{ output }}",
        "query_format": "{{ a }}-{{ b }}",
    }
    response = await complete(served, "x", template=template)
    assert refusal(response) == (400, "invalid_request", "inputs")
    body = {"template": template, "inputs": {"a": "x", "b": "y"}}
    assert texts(await served.client.post("/v1/completions", json=body)) == ["x-y"]


# What all requests share.


async def test_usage_metrics_and_the_log_know_it(
    served: Served, events: list[dict[str, Any]]
) -> None:
    await add_lora(served, "tone")
    response = await complete(served, "hello", model="tone", max_tokens=4)
    (used,) = (await served.get("/usage")).json()["usage"]
    (line,) = [each for each in events if each.get("path") == "/v1/completions"]

    assert response.headers["x-request-id"] == response.json()["id"]
    assert (used["adapter"], used["requests"]) == ("tone", 1)
    assert (used["prompt_tokens"], used["completion_tokens"]) == (5, 4)
    assert (line["prompt_tokens"], line["completion_tokens"], line["outcome"]) == (5, 4, "success")
    assert line["adapter"].startswith("tone@")
    assert await served.requests("v1/completions", "success") == 1
    assert (
        await served.metric('softserve_named_completion_tokens_total{kind="adapter",name="tone"')
        == 4
    )


async def test_a_stream_is_events_and_done(served: Served) -> None:
    response = await complete(served, "hey", stream=True)
    lines = [line for line in response.text.split("\n\n") if line]
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "hey"


async def test_a_failure_in_a_stream_is_an_error_event(engine: FakeEngine) -> None:
    async with serving(engine) as served:
        engine.fail(RuntimeError("secret"), at_chunk=2)
        response = await complete(served, "hello", stream=True)
        last = response.text.rstrip().rsplit("\n\n", 1)[1]

    assert response.status_code == 200
    assert last.startswith("event: error\ndata: ")
    error = json.loads(last.partition("data: ")[2])["error"]
    assert (error["type"], error["code"]) == ("internal_error", "internal_error")
    assert "secret" not in response.text


async def test_a_failure_before_the_first_piece_has_its_status(engine: FakeEngine) -> None:
    async with serving(engine) as served:
        engine.fail(RuntimeError("secret"))
        for stream in (False, True):
            response = await complete(served, "hello", stream=stream)
            assert refusal(response) == (500, "internal_error", None)


async def test_prompts_wait_for_their_turns(engine: FakeEngine) -> None:
    """More of them than places: they get theirs one after the other."""
    async with serving(engine, max_running_sequences=1) as served:
        assert texts(await complete(served, ["ab", "cd", "ef"])) == ["ab", "cd", "ef"]
        engine.hold()
        running = asyncio.create_task(complete(served, "a"))
        await until(lambda: len(engine.open) == 1)
        waiting = asyncio.create_task(chat(served))
        await until_waiting(served)
        engine.release()
        assert (await running).status_code == (await waiting).status_code == 200


async def test_a_full_server_says_when_to_try_again(engine: FakeEngine) -> None:
    async with serving(engine, max_sequences_in_flight=1) as served:
        engine.hold()
        running = asyncio.create_task(complete(served, "a"))
        await until_in_flight(served, 1)
        refused = await chat(served)
        engine.release()
        await running
    assert refusal(refused) == (503, "server_full", None)
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_quota_counts_its_tokens(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    headers = new_key(path, "bot", completion_tokens_per_minute=3)
    async with serving(engine, keys_file=path) as served:
        served.client.headers.update(headers)
        assert texts(await complete(served, "hello", max_tokens=4)) == ["hell"]
        refused = await complete(served, "hello", max_tokens=1)
    assert refusal(refused) == (429, "rate_limit_exceeded", None)
    assert int(refused.headers["retry-after"]) >= 1


async def test_time_that_is_up_before_its_turn(engine: FakeEngine) -> None:
    async with serving(engine, max_running_sequences=1) as served:
        engine.hold()
        running = asyncio.create_task(complete(served, "a"))
        await until(lambda: len(engine.open) == 1)
        late = await complete(served, "b", timeout_seconds=0.01)
        engine.release()
        await running
    assert refusal(late) == (503, "request_timed_out", None)


async def test_time_that_is_up_ends_with_the_text_so_far(engine: FakeEngine) -> None:
    async with serving(engine) as served:
        engine.hold()
        response = await complete(served, "hello", timeout_seconds=0.05)
    assert texts(response) == [""]


async def test_whoever_leaves_ends_it(engine: FakeEngine) -> None:
    async with serving(engine) as served:
        engine.hold()
        leaving = asyncio.create_task(complete(served, ["ab", "cd"], stream=True))
        await until(lambda: len(engine.open) == 2)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until(lambda: not engine.open)
        assert len(engine.left_early) == 2
        await until_in_flight(served, 0)


async def test_a_draining_server_takes_none(served: Served) -> None:
    await served.lifecycle.drain(0)
    for response in (await complete(served), await chat(served)):
        assert refusal(response) == (503, "server_draining", None)


async def test_tokens_and_texts(served: Served) -> None:
    made = await served.client.post("/tokenize", json={"prompt": "hé"})
    assert made.json()["tokens"] == list("hé".encode())
    back = await served.client.post("/detokenize", json={"tokens": made.json()["tokens"]})
    assert back.json() == {"prompt": "hé"}
    for body in ({"prompt": "a", "model": "none"}, {"messages": MESSAGES, "model": "none"}):
        response = await served.client.post("/tokenize", json=body)
        assert refusal(response) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/completions/render"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/audio/transcriptions"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/collective_rpc"),
        ("POST", "/reset_prefix_cache"),
        ("POST", "/sleep"),
        ("POST", "/wake_up"),
        ("POST", "/pause"),
        ("POST", "/scale_elastic_ep"),
        ("POST", "/start_profile"),
        ("GET", "/server_info"),
        ("GET", "/tokenizer_info"),
        ("POST", "/invocations"),
        ("POST", "/inference/v1/generate"),
    ],
)
async def test_what_else_vllm_serves_is_not_here(served: Served, method: str, path: str) -> None:
    assert (await served.client.request(method, path, json={})).status_code == 404


async def test_a_page_may_send_what_the_openai_client_sends() -> None:
    headers = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os"
    async with serving(cors_origin=("https://app.example",)) as served:
        response = await served.client.options(
            "/v1/chat/completions",
            headers={
                "origin": "https://app.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": headers,
            },
        )
    assert response.status_code == 200
