"""In-context learning over HTTP: prompts rendered and completed, templates changed, bad input."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from app.engine.protocol import Prompt
from app.errors import ServerFull
from tests.adapter_files import (
    as_files,
    lora_config,
    lora_tensors,
    multitask_config,
    multitask_tensors,
    soft_prompt_config,
    soft_prompt_tensors,
)
from tests.api.support import Served, client_of, error_of, serving, until
from tests.fake_engine import ARCHITECTURE, HIDDEN_SIZE, FakeEngine, adapter_mark
from tests.server.requests import Streamed

TEMPLATE: dict[str, Any] = {
    "instruction": "Mood?",
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
    "separator": "\n",
    "examples": [
        {"text": "red apples", "output": "good"},
        {"text": "cold soup", "output": "bad"},
        {"text": "warm soup", "output": "good"},
    ],
    "max_new_tokens": 4,
}
YAML = json.dumps(TEMPLATE).encode()


class Icl:
    """Short forms of what the tests ask."""

    def __init__(self, served: Served) -> None:
        self.served = served

    async def post(self, path: str, **fields: Any) -> httpx.Response:
        body = {"template": TEMPLATE, "inputs": {"text": "hot soup"}, **fields}
        return await self.served.client.post(f"/icl/{path}", json=body)

    async def render(self, **fields: Any) -> dict[str, Any]:
        response = await self.post("render", **fields)
        assert response.status_code == 200, response.text
        (prompt,) = response.json()["prompts"]
        shown: dict[str, Any] = prompt
        return shown

    async def generate(self, **fields: Any) -> dict[str, Any]:
        response = await self.post("generate", **fields)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def put(self, name: str, **fields: Any) -> httpx.Response:
        return await self.served.client.put(f"/icl/templates/{name}", json=TEMPLATE | fields)


@pytest.fixture
def icl(served: Served) -> Icl:
    return Icl(served)


@pytest.mark.parametrize(
    ("shots", "prompt"),
    [
        (0, "Mood?\nhot soup ="),
        (1, "Mood?\nred apples = good\nhot soup ="),
        (2, "Mood?\nred apples = good\ncold soup = bad\nhot soup ="),
        ("auto", "Mood?\nred apples = good\ncold soup = bad\nwarm soup = good\nhot soup ="),
    ],
)
async def test_shots(icl: Icl, shots: int | str, prompt: str) -> None:
    rendered = await icl.render(shots=shots)
    assert rendered["prompt"] == prompt
    assert rendered["prompt_tokens"] == len(prompt)
    answer = await icl.generate(shots=shots)
    assert answer["completions"][0]["text"] == prompt[:4]
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["prompts"][0]["shots"] == len(rendered["examples"])


async def test_the_whole_rendering(icl: Icl) -> None:
    response = await icl.post("render", shots=1)
    answer = response.json()
    examples = TEMPLATE["examples"]
    assert answer == {
        "id": response.headers["x-request-id"],
        "template": {"name": None, "version": answer["template"]["version"]},
        "prompts": [
            {
                "prompt_index": 0,
                "prompt_tokens": 35,
                "virtual_tokens": 0,
                "shots": 1,
                "num_dropped": 0,
                "examples": [{"place": 0, "example": examples[0]}],
                "prompt": "Mood?\nred apples = good\nhot soup =",
                "left_out": [
                    {"place": 1, "example": examples[1], "why": "1 were asked for"},
                    {"place": 2, "example": examples[2], "why": "1 were asked for"},
                ],
            }
        ],
    } | {"prompts": answer["prompts"]}
    assert answer["prompts"][0]["left_out"][1]["example"] == examples[2]


async def test_selection(icl: Icl) -> None:
    async def shown(**fields: Any) -> list[int]:
        rendered = await icl.render(**fields)
        return [example["place"] for example in rendered["examples"]]

    assert await shown(shots=2, selection="first") == [0, 1]
    # The nearest comes last.
    assert (await shown(shots=2, selection="similar", inputs={"text": "warm"}))[-1] == 2
    assert len(await shown(shots=2, selection="diverse")) == 2
    seeds = [await shown(shots=1, selection="random", selection_seed=seed) for seed in range(9)]
    assert len({tuple(indices) for indices in seeds}) > 1
    assert seeds[4] == await shown(shots=1, selection="random", selection_seed=4)


async def test_examples_of_the_request_take_the_place_of_the_templates(icl: Icl) -> None:
    rendered = await icl.render(examples=[{"text": "x", "output": "y"}])
    assert rendered["prompt"] == "Mood?\nx = y\nhot soup ="
    assert (await icl.render(examples=[]))["prompt"] == "Mood?\nhot soup ="


async def test_several_inputs_in_order(icl: Icl) -> None:
    answer = await icl.generate(inputs=[{"text": "a"}, {"text": "bb"}], shots=0, max_new_tokens=20)
    assert [each["text"] for each in answer["completions"]] == ["Mood?\na =", "Mood?\nbb ="]
    assert [each["prompt_index"] for each in answer["prompts"]] == [0, 1]


async def test_the_chat_template_is_part_of_the_prompt(icl: Icl) -> None:
    template = TEMPLATE | {"use_chat_template": True, "system": "Be kind."}
    rendered = await icl.render(template=template, shots=0)
    assert rendered["prompt"] == "[system]Be kind.[user]Mood?\nhot soup =[assistant]"
    assert rendered["prompt_tokens"] == len(rendered["prompt"])
    answer = await icl.generate(template=template, shots=0, max_new_tokens=200)
    assert answer["completions"][0]["text"] == rendered["prompt"]


async def test_examples_as_turns(icl: Icl) -> None:
    turns = {**TEMPLATE, "use_chat_template": True, "examples_as_turns": True}
    del turns["separator"]
    rendered = await icl.render(template=turns, shots=1)
    assert rendered["prompt"] == (
        "[system]Mood?[user]red apples =[assistant]good[user]hot soup =[assistant]"
    )
    answer = await icl.generate(template=turns, shots=1, max_new_tokens=100)
    assert answer["completions"][0]["text"] == rendered["prompt"]


LONG = [{"text": "x" * 50, "output": "y"}] * 5


@pytest.mark.parametrize(
    ("max_new_tokens", "shots"), [(4, 4), (20, 4), (21, 3), (100, 2), (200, 0)]
)
async def test_examples_are_dropped_whole(icl: Icl, max_new_tokens: int, shots: int) -> None:
    """An example is 54 tokens and a newline, the rest 16; the context window has 256."""
    rendered = await icl.render(examples=LONG, shots=5, max_new_tokens=max_new_tokens)
    assert (rendered["shots"], rendered["num_dropped"]) == (shots, 5 - shots)
    assert rendered["prompt_tokens"] == 16 + 55 * shots
    assert rendered["prompt_tokens"] + max_new_tokens <= 256
    dropped = [each for each in rendered["left_out"] if "did not fit" in each["why"]]
    assert [each["place"] for each in dropped] == list(range(shots, 5))
    answer = await icl.generate(examples=LONG, shots=5, max_new_tokens=max_new_tokens)
    assert answer["prompts"][0]["num_dropped"] == 5 - shots
    assert answer["usage"]["prompt_tokens"] == rendered["prompt_tokens"]


async def test_an_input_that_cannot_fit(icl: Icl) -> None:
    for path in ("render", "generate"):
        response = await icl.post(path, inputs={"text": "x" * 250})
        assert error_of(response) == (422, "context_window_exceeded", "inputs")
        assert response.json()["error"]["message"] == (
            "inputs with zero shots make a prompt of 258 tokens and max_new_tokens is 4; the "
            "context window is 256: shorten the inputs by 6 tokens, or lower max_new_tokens"
        )
    second = await icl.post("render", inputs=[{"text": "a"}, {"text": "x" * 250}])
    assert second.json()["error"]["message"].startswith("inputs 1 with zero shots")


async def test_an_input_that_cannot_fit_is_refused_before_it_is_tokenized(icl: Icl) -> None:
    response = await icl.post("render", inputs={"text": "x" * 3000})
    assert error_of(response) == (422, "context_window_exceeded", "inputs")
    message = response.json()["error"]["message"]
    assert message.startswith("the prompt of inputs has 3,0")
    assert " tokens or more; the context window is 256: shorten the inputs by at least " in message


async def test_controls_of_the_request_come_before_those_of_the_template(icl: Icl) -> None:
    template = TEMPLATE | {"temperature": 0.5, "top_k": 3, "stop": ["#"], "seed": 3}
    sampling = (await icl.generate(template=template))["sampling"]
    assert (sampling["temperature"], sampling["top_k"], sampling["stop"]) == (0.5, 3, ["#"])
    assert sampling["max_new_tokens"] == 4
    greedy = (await icl.generate(template=template, temperature=0, max_new_tokens=2))["sampling"]
    assert (greedy["greedy"], greedy["top_k"], greedy["stop"]) == (True, None, ["#"])
    assert greedy["max_new_tokens"] == 2
    assert (await icl.generate(template=template, stop=[]))["sampling"]["stop"] == []
    longer = TEMPLATE | {"min_new_tokens": 3}
    short = (await icl.generate(template=longer, max_new_tokens=2))["sampling"]
    assert (short["min_new_tokens"], short["max_new_tokens"]) == (2, 2)


async def test_a_stream_says_the_same(icl: Icl) -> None:
    whole = await icl.generate(inputs=[{"text": "a"}, {"text": "b"}], shots=1)
    response = await icl.post(
        "generate", inputs=[{"text": "a"}, {"text": "b"}], shots=1, stream=True
    )
    streamed = Streamed.of_lines(response.text.splitlines())
    assert streamed.done
    for index in range(2):
        assert streamed.text(index) == whole["completions"][index]["text"]
        end = streamed.of(index)[-1]
        assert end["prompt"] == whole["prompts"][index]
        assert end["template"] == whole["template"]


LABELLED = TEMPLATE | {"labels": ["good", "bad"]}


async def test_labels_have_probabilities(icl: Icl) -> None:
    answer = await icl.generate(template=LABELLED)
    classification = answer["prompts"][0]["classification"]
    scores = classification["labels"]
    assert [each["label"] for each in scores] == ["good", "bad"]
    assert sum(each["probability"] for each in scores) == pytest.approx(1.0)
    best = max(scores, key=lambda each: each["probability"])
    assert classification["best"] == best["label"]
    assert "classification" not in await icl.render(template=LABELLED)
    chat = LABELLED | {"use_chat_template": True}
    assert (await icl.generate(template=chat))["prompts"][0]["classification"]


async def test_labels_fit_into_the_context_window_too(icl: Icl) -> None:
    labels = ["good", "x" * 60]
    fields = {"template": LABELLED | {"labels": labels, "examples": []}, "max_new_tokens": 1}
    fits = await icl.generate(**fields, inputs={"text": "y" * 180})
    assert fits["prompts"][0]["classification"]["best"] == "good"
    response = await icl.post("generate", **fields, inputs={"text": "y" * 200})
    assert error_of(response) == (422, "context_window_exceeded", "inputs")


async def test_a_template_with_an_adapter(icl: Icl) -> None:
    client = icl.served.client
    lora = as_files(lora_config(4), lora_tensors(ARCHITECTURE.modules, 4, 0))
    soft = as_files(soft_prompt_config(20, HIDDEN_SIZE), soft_prompt_tensors(20, HIDDEN_SIZE, 0))
    for name, files in (("lora", lora), ("soft", soft)):
        parts = [("file", file) for file in files]
        assert (await client.put(f"/adapters/{name}", files=parts)).status_code == 200
    template = LABELLED | {"adapter": "lora", "soft_prompt": "soft"}
    answer = await icl.generate(template=template, max_new_tokens=10)
    assert answer["completions"][0]["text"] == adapter_mark(answer["adapter"]["version"])
    assert answer["usage"]["virtual_tokens"] == answer["prompts"][0]["virtual_tokens"] == 20
    # null takes the template's default away.
    bare = await icl.generate(template=template, adapter=None, soft_prompt=None)
    assert "adapter" not in bare
    assert bare["usage"]["virtual_tokens"] == 0
    # Virtual tokens count in the context window.
    fields = {"examples": LONG, "max_new_tokens": 20, "template": TEMPLATE}
    assert (await icl.render(**fields))["shots"] == 4
    assert (await icl.render(**fields, soft_prompt="soft"))["shots"] == 3
    missing = await icl.post("generate", adapter="none")
    assert error_of(missing) == (404, "adapter_not_found", "adapter")


async def test_a_template_with_a_task(icl: Icl) -> None:
    config, tensors = multitask_config(20, HIDDEN_SIZE, 3), multitask_tensors(20, HIDDEN_SIZE, 3)
    parts = [("file", file) for file in as_files(config, tensors)]
    assert (await icl.served.client.put("/adapters/tasks", files=parts)).is_success
    assert (await icl.put("of-a-task", soft_prompt="tasks#1")).is_success
    answer = await icl.generate(template="of-a-task", max_new_tokens=12)
    used = answer["soft_prompt"]
    assert used["task"] == 1
    assert answer["completions"][0]["text"] == adapter_mark(used["version"], 1)
    answer = await icl.generate(template="of-a-task", max_new_tokens=12, soft_prompt="tasks#2")
    assert answer["completions"][0]["text"] == adapter_mark(used["version"], 2)
    missing = await icl.post("generate", template="of-a-task", soft_prompt="tasks")
    assert error_of(missing) == (422, "invalid_request", "soft_prompt")


async def test_templates_are_added_shown_rolled_back_and_removed(icl: Icl) -> None:
    client = icl.served.client
    first = (await icl.put("mood")).json()
    second = (await icl.put("mood", instruction="How?", description="Moods.")).json()
    assert [each["live"] for each in second["versions"]] == [True, False]
    assert second["template"]["instruction"] == "How?"
    (listed,) = (await client.get("/icl/templates")).json()["templates"]
    assert (listed["name"], listed["description"], listed["num_examples"]) == ("mood", "Moods.", 3)
    assert "template" not in listed

    answer = await icl.generate(template="mood")
    assert answer["template"] == {"name": "mood", "version": second["live"]}
    pinned = await icl.generate(template=f"mood@{first['live'][:8]}")
    assert pinned["template"]["version"] == first["live"]

    back = await client.post("/icl/templates/mood/rollback")
    assert back.json()["live"] == first["live"]
    refused = await client.post("/icl/templates/mood/rollback")
    assert error_of(refused) == (409, "template_conflict", "version")
    there = await client.post("/icl/templates/mood/rollback", json={"version": second["live"]})
    assert there.json()["live"] == second["live"]

    # What is shown can be sent.
    shown = (await client.get("/icl/templates/mood")).json()
    again = await client.put("/icl/templates/mood", json=shown["template"])
    assert again.json()["live"] == shown["live"]

    assert (await client.delete("/icl/templates/mood")).status_code == 204
    for response in (
        await client.get("/icl/templates/mood"),
        await client.delete("/icl/templates/mood"),
        await client.post("/icl/templates/mood/rollback"),
    ):
        assert error_of(response) == (404, "template_not_found", "name")
    gone = await icl.post("generate", template="mood")
    assert error_of(gone) == (404, "template_not_found", "template")


async def test_a_template_in_yaml(icl: Icl) -> None:
    headers = {"content-type": "application/yaml"}
    put = icl.served.client.put
    response = await put("/icl/templates/a", content=YAML, headers=headers)
    assert response.status_code == 200
    assert response.json()["live"] == (await icl.put("b")).json()["live"]
    in_upper_case = {"content-type": "Application/YAML; charset=UTF-8"}
    plain = yaml.safe_dump(TEMPLATE).encode()
    assert (await put("/icl/templates/c", content=plain, headers=in_upper_case)).status_code == 200
    for other in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        told = await put("/icl/templates/c", content=b"input_variables: [text]", headers=other)
        assert error_of(told) == (422, "invalid_request", None)
        assert "content-type: application/yaml" in told.json()["error"]["message"]
    for bomb in (b"a: &a [b]\nc: *a", b"[" * 100_000, b"a: !!python/name:os.system", b"\xff"):
        refused = await put("/icl/templates/a", content=bomb, headers=headers)
        assert error_of(refused)[:2] == (422, "template_rejected")
    beside = await put("/icl/templates/a", content=b"examples_file: x.jsonl", headers=headers)
    assert error_of(beside) == (422, "template_rejected", "examples_file")


async def test_changes_need_the_key() -> None:
    async with serving(admin_key="secret") as served:
        changes = [
            ("PUT", "/icl/templates/a"),
            ("POST", "/icl/templates/a/rollback"),
            ("POST", "/icl/templates/a/split"),
            ("POST", "/icl/templates/a/promote"),
            ("POST", "/icl/templates/a/shadow"),
            ("DELETE", "/icl/templates/a/shadow"),
            ("DELETE", "/icl/templates/a"),
        ]
        for method, path in changes:
            response = await served.client.request(method, path, json=TEMPLATE)
            assert error_of(response)[:2] == (401, "key_required")
        key = {"authorization": "Bearer secret"}
        put = await served.client.put("/icl/templates/a", json=TEMPLATE, headers=key)
        assert put.status_code == 200
        assert (await served.client.get("/icl/templates")).status_code == 200


async def test_changes_come_from_this_machine(served: Served) -> None:
    async with client_of(served.app, host="10.0.0.1") as stranger:
        response = await stranger.put("/icl/templates/a", json=TEMPLATE)
        assert error_of(response)[:2] == (403, "not_permitted")


async def test_a_watched_folder(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_bytes(YAML)
    (tmp_path / "bad.yaml").write_text("instruction: [")
    async with serving(template_dir=tmp_path) as served:
        icl = Icl(served)
        assert (await icl.render(template="good"))["shots"] == 3
        response = await icl.post("render", template="bad")
        assert error_of(response) == (404, "template_not_found", "template")
        shown = (await served.get("/icl/templates/bad")).json()
        assert "not YAML" in shown["rejected"]
        (tmp_path / "bad.yaml").write_bytes(YAML)

        await until(lambda: "bad" in served.app.state.templates.names.live)
        assert (await icl.render(template="bad"))["shots"] == 3


async def test_a_warm_template_is_computed_before_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mood.yaml").write_bytes(json.dumps(TEMPLATE | {"warm": True}).encode())
    engine = FakeEngine()
    async with serving(engine, template_dir=tmp_path) as served:
        assert [name[:5] for name in engine.finished] == ["warm-"]
        await Icl(served).put("other", warm=True)
        await Icl(served).put("cold")
        await Icl(served).put("empty", warm=True, instruction="", examples=[])
        assert len(engine.finished) == 2
        (tmp_path / "late.yaml").write_bytes(json.dumps(TEMPLATE | {"warm": True}).encode())
        await until(lambda: len(engine.finished) == 3)


async def test_what_cannot_be_warmed_is_served_all_the_same(tmp_path: Path) -> None:
    warm = TEMPLATE | {"warm": True, "adapter": "missing"}
    (tmp_path / "mood.yaml").write_bytes(json.dumps(warm).encode())
    async with serving(template_dir=tmp_path) as served:
        response = await Icl(served).post("render", template="mood", adapter=None)
        assert response.status_code == 200


def _with(**fields: Any) -> dict[str, Any]:
    return {"template": TEMPLATE | fields}


@pytest.mark.parametrize(
    ("fields", "status", "type", "param"),
    [
        ({"template": "none"}, 404, "template_not_found", "template"),
        ({"template": "mood@123456"}, 404, "template_not_found", "template"),
        ({"template": ""}, 422, "invalid_request", "template"),
        ({"template": None}, 422, "invalid_request", "template"),
        ({"template": 7}, 422, "invalid_request", "template"),
        ({"template": []}, 422, "invalid_request", "template"),
        ({"template": {}}, 422, "invalid_request", "template"),
        (_with(colour="red"), 422, "invalid_request", "template"),
        (_with(query_format="{{ mood }}"), 422, "template_rejected", "template"),
        (_with(query_format="{{ text.__class__ }}"), 422, "template_rejected", "template"),
        (_with(query_format="{% for i in range(10**9) %}x{% endfor %}"), 422,
         "template_rejected", "template"),
        (_with(query_format="{{ text * 10**9 }}"), 422, "template_rejected", "template"),
        (_with(query_format="{{ text }"), 422, "template_rejected", "template"),
        (_with(query_format="{% for each in text %}{{ each }}{% endfor %}"), 422,
         "invalid_request", "inputs"),
        (_with(instruction="<|end|>"), 422, "template_rejected", "template"),
        (_with(instruction="a\x00b"), 422, "invalid_request", "template"),
        (_with(labels=["a", "ab"]), 422, "template_rejected", "template"),
        (_with(examples=[{"text": "a"}]), 422, "template_rejected", "template"),
        (_with(examples=[]) | {"shots": 1}, 422, "invalid_request", "shots"),
        ({"examples": [], "shots": 1}, 422, "invalid_request", "shots"),
        ({"shots": 4}, 422, "invalid_request", "shots"),
        ({"shots": -1}, 422, "invalid_request", "shots"),
        ({"shots": 1.5}, 422, "invalid_request", "shots"),
        ({"shots": True}, 422, "invalid_request", "shots"),
        ({"shots": "many"}, 422, "invalid_request", "shots"),
        ({"shots": 10**30}, 422, "invalid_request", "shots"),
        ({"selection": "best"}, 422, "invalid_request", "selection"),
        ({"selection_seed": 1}, 422, "invalid_request", "selection_seed"),
        ({"inputs": {}}, 422, "invalid_request", "inputs"),
        ({"inputs": []}, 422, "invalid_request", "inputs"),
        ({"inputs": [{}]}, 422, "invalid_request", "inputs"),
        ({"inputs": None}, 422, "invalid_request", "inputs"),
        ({"inputs": "text"}, 422, "invalid_request", "inputs"),
        ({"inputs": {"text": 7}}, 422, "invalid_request", "inputs"),
        ({"inputs": {"text": None}}, 422, "invalid_request", "inputs"),
        ({"inputs": {"text": "a", "mood": "b"}}, 422, "invalid_request", "inputs"),
        ({"inputs": {"mood": "b"}}, 422, "invalid_request", "inputs"),
        ({"inputs": {"text": ["a"]}}, 422, "invalid_request", "inputs"),
        ({"inputs": {"text": "a<|end|>"}}, 422, "invalid_request", "inputs"),
        ({"inputs": {"text": "a\x00"}}, 422, "invalid_request", "inputs"),
        ({"inputs": [{"text": "a"}] * 33}, 422, "invalid_request", "inputs"),
        ({"examples": [{"text": "a"}]}, 422, "template_rejected", "examples"),
        ({"examples": [{"text": "<|end|>", "output": "a"}]}, 422, "template_rejected", "examples"),
        ({"examples": [{"text": "a", "output": 7}]}, 422, "invalid_request", "examples"),
        ({"examples": [1]}, 422, "invalid_request", "examples"),
        ({"examples": [{"text": "a", "output": "b"}] * 1001}, 422, "invalid_request", "examples"),
        ({"prompt": "a"}, 422, "invalid_request", "prompt"),
        ({"temprature": 1}, 422, "invalid_request", "temprature"),
        ({"temperature": 0, "top_k": 3}, 422, "invalid_request", "top_k"),
        ({"top_k": 1000}, 422, "invalid_request", "top_k"),
    ],
)  # fmt: skip
async def test_bad_input(
    icl: Icl, fields: dict[str, Any], status: int, type: str, param: str
) -> None:
    for path in ("render", "generate"):
        response = await icl.post(path, **fields)
        assert error_of(response) == (status, type, param), response.text
        assert "<inline>" not in response.text
    assert (await icl.post("generate")).status_code == 200


async def test_the_message_names_the_field_of_an_inline_template(icl: Icl) -> None:
    response = await icl.post("render", template={"instruction": 7})
    assert response.json()["error"]["message"].startswith(
        "template[instruction] must be a valid string, not 7; "
    )


@pytest.mark.parametrize("name", ["a" * 65, ".hidden", "a%2Fb", "a b"])
async def test_a_name_that_cannot_be(icl: Icl, name: str) -> None:
    response = await icl.put(name)
    assert response.status_code in {404, 422}
    error_of(response)


async def test_what_is_no_template_is_not_put(icl: Icl) -> None:
    put = icl.served.client.put
    assert error_of(await icl.put("a", labels=["a"])) == (422, "template_rejected", "labels")
    assert error_of(await icl.put("a", colour=1)) == (422, "invalid_request", "colour")
    broken = await put("/icl/templates/a", content=b"{")
    assert error_of(broken)[:2] == (400, "invalid_request")
    assert (await icl.served.get("/icl/templates")).json() == {"templates": []}


class RefusingEngine(FakeEngine):
    """Refuses to score what ends with a `b`, once it scores what ends with a `g`, for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.scoring = asyncio.Event()
        self.num_scoring = 0

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        self.num_scoring += 1
        try:
            if prompt.token_ids[-1] == ord("g"):
                self.scoring.set()
                await asyncio.Event().wait()
            if prompt.token_ids[-1] == ord("b"):
                await self.scoring.wait()
                raise ServerFull("the engine's queue is full: try again")
            return await super().next_token_logprobs(request_id, prompt)
        finally:
            self.num_scoring -= 1


@pytest.mark.parametrize("num_inputs", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_goes_on_for_a_request_that_has_failed(num_inputs: int, stream: bool) -> None:
    engine = RefusingEngine()
    async with serving(engine) as served:
        response = await Icl(served).post(
            "generate",
            template=TEMPLATE | {"labels": ["good", "bad"]},
            inputs=[{"text": "soup"}] * num_inputs,
            shots=0,
            stream=stream,
        )
        assert error_of(response) == (503, "server_full", None)
        assert engine.num_scoring == 0
