"""Adapters over HTTP: added, shown, used, replaced, rolled back and removed while it serves."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from app.adapters.validation import digest_of
from tests.adapter_files import (
    Files,
    as_files,
    lora_config,
    lora_tensors,
    multitask_config,
    multitask_tensors,
    pack_tar_gz,
    pack_zip,
    soft_prompt_config,
    soft_prompt_tensors,
    write_lora,
    write_multitask,
)
from tests.api.support import (
    PROBE_KL_DIVERGENCE,
    Served,
    client_of,
    error_of,
    serving,
    starting,
    until,
    until_in_flight,
    until_ready,
)
from tests.fake_engine import ARCHITECTURE, HIDDEN_SIZE, FakeEngine, adapter_mark

CHANGES = [
    ("PUT", "/adapters/my-task"),
    ("POST", "/adapters/my-task/rollback"),
    ("POST", "/adapters/my-task/split"),
    ("POST", "/adapters/my-task/promote"),
    ("POST", "/adapters/my-task/shadow"),
    ("DELETE", "/adapters/my-task/shadow"),
    ("DELETE", "/adapters/my-task"),
]
# Where one is needed.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("PUT", "/adapters/my-task"): {"source": "a/b"},
    ("POST", "/adapters/my-task/split"): {"versions": {"aaaaaa": 1, "bbbbbb": 1}},
    ("POST", "/adapters/my-task/shadow"): {"version": "aaaaaa", "percent": 1},
}


def lora(seed: int = 0, rank: int = 4, **config: Any) -> Files:
    return as_files(lora_config(rank, **config), lora_tensors(ARCHITECTURE.modules, rank, seed))


def multitask(num_tasks: int = 3, seed: int = 0) -> Files:
    return as_files(
        multitask_config(2, HIDDEN_SIZE, num_tasks),
        multitask_tensors(2, HIDDEN_SIZE, num_tasks, seed=seed),
    )


def soft_prompt(num_virtual_tokens: int = 20, seed: int = 0) -> Files:
    return as_files(
        soft_prompt_config(num_virtual_tokens, HIDDEN_SIZE),
        soft_prompt_tensors(num_virtual_tokens, HIDDEN_SIZE, seed),
    )


async def upload(served: Served, name: str, files: Files, **fields: str) -> httpx.Response:
    parts = [("file", file) for file in files]
    return await served.client.put(f"/adapters/{name}", files=parts, data=fields)


async def added(served: Served, name: str, files: Files) -> str:
    """The digest of a version that was added."""
    response = await upload(served, name, files)
    assert response.status_code == 200, response.text
    digest: str = response.json()["live"]
    return digest


async def named(served: Served, name: str, source: str, **fields: Any) -> httpx.Response:
    """Have the server find a source."""
    return await served.client.put(f"/adapters/{name}", json={"source": source, **fields})


async def rolled_back(served: Served, name: str, **body: Any) -> httpx.Response:
    return await served.client.post(f"/adapters/{name}/rollback", json=body)


def message_of(response: httpx.Response) -> str:
    message: str = response.json()["error"]["message"]
    return message


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    *events, done = response.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


# Added and shown.


async def test_nothing_is_there_at_first(served: Served) -> None:
    assert (await served.get("/adapters")).json() == {"adapters": []}


async def test_what_is_noted_is_shown(served: Served) -> None:
    note = "target_modules names 'c_attn', which the base model does not have"
    files = lora(target_modules=["q_proj", "v_proj", "c_attn"])
    for answer in (
        (await upload(served, "my-task", files)).json(),
        (await served.client.get("/adapters/my-task")).json(),
    ):
        assert answer["versions"][0]["notes"] == [note]


async def test_an_upload(served: Served) -> None:
    files = lora(base_model="echo")
    answer = (await upload(served, "my-task", files)).json()
    (version,) = answer["versions"]
    digest = answer["live"]
    assert version.pop("created_at").endswith("Z")
    assert version == {
        "version": digest,
        "live": True,
        "loaded": True,
        "source": "upload",
        "size_bytes": sum(len(content) for _, content in files),
        "base_model": "echo",
        "rank": 4,
        "target_modules": ["q_proj", "v_proj"],
        "virtual_tokens": None,
        "tasks": None,
        "task": None,
        "notes": [],
        "effect": {"kl_divergence": pytest.approx(PROBE_KL_DIVERGENCE), "changed": True},
        "warning": None,
        "requests": 0,
    }
    assert {name: answer[name] for name in ("name", "kind", "rejected", "requests")} == {
        "name": "my-task",
        "kind": "lora",
        "rejected": None,
        "requests": 0,
    }


async def test_what_was_added_is_shown(served: Served) -> None:
    second = (await upload(served, "b-task", lora())).json()
    first = (await upload(served, "a-task", soft_prompt())).json()
    assert (await served.get("/adapters/a-task")).json() == first
    assert (await served.get("/adapters")).json() == {"adapters": [first, second]}
    assert first["kind"] == "soft_prompt"
    assert first["versions"][0]["virtual_tokens"] == 20


async def test_every_way_to_send_the_same_files_is_the_same_version(
    served: Served, tmp_path: Path
) -> None:
    folder = write_lora(tmp_path / "trained", ARCHITECTURE.modules)
    files = [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]
    for sent in (
        files,
        files[::-1],
        [("trained.tar.gz", pack_tar_gz(folder))],
        [("trained.zip", pack_zip(folder))],
    ):
        assert await added(served, "my-task", sent) == digest_of(folder)
    assert len((await served.get("/adapters/my-task")).json()["versions"]) == 1


async def test_requests_are_counted(served: Served) -> None:
    await added(served, "my-task", lora())
    await served.generate(adapter="my-task")
    await served.inspect(adapter="my-task")
    await served.generate()
    shown = (await served.get("/adapters/my-task")).json()
    assert (shown["requests"], shown["versions"][0]["requests"]) == (2, 2)
    assert await served.requests("adapters/{name}", "success") == 2


# Used.


async def test_the_very_next_request_uses_it(served: Served) -> None:
    for seed in range(3):
        digest = await added(served, "my-task", lora(seed))
        answer = (await served.generate("hi", adapter="my-task")).json()
        assert answer["adapter"] == {"name": "my-task", "version": digest}
        assert answer["completions"][0]["text"] == f"{adapter_mark(digest)}hi"
        assert "soft_prompt" not in answer


async def test_the_very_next_stream_uses_it(served: Served) -> None:
    for seed in range(3):
        digest = await added(served, "my-task", soft_prompt(seed=seed))
        response = await served.generate("hi", soft_prompt="my-task", stream=True)
        *pieces, ending = events_of(response)
        assert "".join(piece["text"] for piece in pieces) == f"{adapter_mark(digest)}hi"
        assert ending["soft_prompt"] == {"name": "my-task", "version": digest}
        assert "adapter" not in ending


async def test_each_task(served: Served) -> None:
    """By NAME#TASK, of the live version and of an older one, streaming or not."""
    old, live = [await added(served, "tasks", multitask(seed=seed)) for seed in range(2)]
    for reference, digest in (("tasks", live), (f"tasks@{old[:6]}", old), (f"tasks@{old}", old)):
        for task in range(3):
            used = {"name": "tasks", "version": digest, "task": task}
            asked = {"soft_prompt": f"{reference}#{task}"}
            answer = (await served.generate("hi", **asked)).json()
            assert answer["completions"][0]["text"] == f"{adapter_mark(digest, task)}hi"
            assert answer["soft_prompt"] == used
            assert answer["usage"]["virtual_tokens"] == 2
            *pieces, ending = events_of(await served.generate("hi", **asked, stream=True))
            assert "".join(each["text"] for each in pieces) == f"{adapter_mark(digest, task)}hi"
            assert ending["soft_prompt"] == used
            assert (await served.inspect("hi", **asked)).json()["soft_prompt"] == used
    shown = (await served.get("/adapters/tasks")).json()
    assert [each["requests"] for each in shown["versions"]] == [9, 18]
    assert [(each["tasks"], each["task"]) for each in shown["versions"]] == [(3, None)] * 2


@pytest.mark.parametrize(
    ("reference", "error", "sentence"),
    [
        ("tasks", (422, "invalid_request"), "tasks has the tasks 0 to 2: name one of them, as"),
        ("tasks@VERSION", (422, "invalid_request"), "name one of them, as tasks@"),
        ("tasks#3", (404, "adapter_not_found"), "tasks has no task '3': it has the tasks 0 to 2"),
        ("tasks#", (404, "adapter_not_found"), "tasks has no task ''"),
        ("tasks#-1", (404, "adapter_not_found"), "tasks has no task '-1'"),
        ("tasks#١", (404, "adapter_not_found"), "tasks has no task"),
        ("tasks# 1", (404, "adapter_not_found"), "tasks has no task ' 1'"),
        ("tasks#1#1", (404, "adapter_not_found"), "tasks has no task '1#1'"),
        ("tasks#1@VERSION", (404, "adapter_not_found"), "tasks has no task '1@"),
        ("tasks#9999999999", (404, "adapter_not_found"), "has no task '9999999999'"),
        ("plain#0", (422, "invalid_request"), "plain has no tasks: name it without #0"),
        ("plain#", (422, "invalid_request"), "plain has no tasks"),
        ("one#1", (404, "adapter_not_found"), "one has no task '1': it has the task 0 alone"),
        ("tasks2#1", (404, "adapter_not_found"), "did you mean tasks"),
        ("#1", (404, "adapter_not_found"), "no adapter is called ''"),
    ],
)
async def test_tasks_that_are_not_there(
    served: Served, reference: str, error: tuple[int, str], sentence: str
) -> None:
    digest = await added(served, "tasks", multitask())
    await added(served, "plain", soft_prompt())
    await added(served, "one", multitask(1))
    response = await served.generate(soft_prompt=reference.replace("VERSION", digest))
    assert error_of(response) == (*error, "soft_prompt")
    assert sentence in message_of(response)


async def test_a_lora_has_no_tasks(served: Served) -> None:
    await added(served, "my-task", lora())
    response = await served.generate(adapter="my-task#0")
    assert error_of(response) == (422, "invalid_request", "adapter")
    assert message_of(response) == "my-task has no tasks: name it without #0"


async def test_the_only_task_needs_no_name(served: Served) -> None:
    digest = await added(served, "one", multitask(1))
    for reference in ("one", "one#0", "one#00", f"one@{digest[:8]}"):
        answer = (await served.generate("hi", soft_prompt=reference)).json()
        assert answer["completions"][0]["text"] == f"{adapter_mark(digest, 0)}hi"
        assert answer["soft_prompt"] == {"name": "one", "version": digest, "task": 0}


async def test_a_task_that_is_named_at_upload(served: Served) -> None:
    files = multitask()
    with_all = await added(served, "tasks", files)
    digests: dict[int, str] = {}
    for task in (0, 2, 0):
        answer = (await upload(served, "of-one", files, task=str(task))).json()
        assert digests.setdefault(task, answer["live"]) == answer["live"]
        version = answer["versions"][0]
        assert (version["tasks"], version["task"], version["virtual_tokens"]) == (None, task, 2)
        generated = (await served.generate("hi", soft_prompt="of-one")).json()
        assert generated["completions"][0]["text"] == f"{adapter_mark(digests[task])}hi"
        assert generated["soft_prompt"] == {"name": "of-one", "version": digests[task]}
    assert len({with_all, *digests.values()}) == 3
    refused = await served.generate(soft_prompt="of-one#0")
    assert message_of(refused) == "of-one has no tasks: name it without #0"
    assert (await upload(served, "tasks", files, task="")).json()["live"] == with_all


async def test_a_task_of_a_source(tmp_path: Path) -> None:
    folder = write_multitask(tmp_path / "trained", 2, HIDDEN_SIZE, 3)
    async with serving(adapter_root=(tmp_path,)) as served:
        answer = (await named(served, "my-task", "trained", task=1)).json()
        assert answer["live"] == digest_of(folder, 1)
        assert answer["versions"][0]["task"] == 1


@pytest.mark.parametrize("task", ["3", "999999999"])
async def test_no_such_task_at_upload(served: Served, task: str) -> None:
    response = await upload(served, "my-task", multitask(), task=task)
    assert error_of(response) == (422, "adapter_rejected", "task")
    assert message_of(response) == f"there is no task {task}: the adapter has the tasks 0 to 2"
    response = await upload(served, "my-task", lora(), task="0")
    assert error_of(response) == (422, "adapter_rejected", "task")


async def test_the_very_next_inspection_uses_it(served: Served) -> None:
    for seed in range(3):
        digest = await added(served, "my-task", lora(seed))
        answer = (await served.inspect("hi", adapter="my-task")).json()
        assert answer["adapter"] == {"name": "my-task", "version": digest}
        assert answer["tokens"][0]["token_id"] == ord("<")


async def test_without_an_adapter_it_is_the_base_model(served: Served) -> None:
    await added(served, "my-task", lora())
    answer = (await served.generate("hi")).json()
    assert answer["completions"][0]["text"] == "hi"
    assert not answer.keys() & {"adapter", "soft_prompt"}


async def test_a_lora_and_a_soft_prompt(served: Served) -> None:
    digests = await added(served, "a-lora", lora()), await added(served, "a-prompt", soft_prompt())
    answer = (await served.generate("hi", adapter="a-lora", soft_prompt="a-prompt")).json()
    assert answer["adapter"] == {"name": "a-lora", "version": digests[0]}
    assert answer["soft_prompt"] == {"name": "a-prompt", "version": digests[1]}
    marks = "".join(map(adapter_mark, digests))
    assert answer["completions"][0]["text"] == f"{marks}hi"


async def test_virtual_tokens_are_counted_with_every_prompt(served: Served) -> None:
    await added(served, "my-task", soft_prompt(20))
    fields: dict[str, Any] = {"soft_prompt": "my-task", "max_new_tokens": 2}
    answer = (await served.generate(["hi", "hello"], **fields)).json()
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "virtual_tokens": 40,
        "completion_tokens": 4,
        "cached_tokens": 0,
    }
    response = await served.generate(["hi", "hello"], **fields, stream=True)
    usages = [event["usage"] for event in events_of(response) if "usage" in event]
    assert [usage["virtual_tokens"] for usage in usages] == [20, 20]
    assert (await served.inspect("hi", soft_prompt="my-task")).json()["virtual_tokens"] == 20


async def test_the_context_window_holds_virtual_tokens_too(served: Served) -> None:
    await added(served, "my-task", soft_prompt(20))
    fits = {"soft_prompt": "my-task", "max_new_tokens": 200}
    assert (await served.generate("a" * 36, **fits)).status_code == 200
    response = await served.generate("a" * 37, **fits)
    assert error_of(response) == (422, "context_window_exceeded", "prompt")
    assert message_of(response) == (
        "the prompt has 37 tokens, its soft prompt 20 and max_new_tokens is 200; the context "
        "window is 256: shorten the prompt by 1 tokens, or lower max_new_tokens to 199"
    )


async def test_a_pinned_version(served: Served) -> None:
    first = await added(served, "my-task", lora(1))
    second = await added(served, "my-task", lora(2))
    for reference, digest in [
        (f"my-task@{first}", first),
        (f"my-task@{first[:6]}", first),
        (f"my-task@{second[:12]}", second),
        ("my-task", second),
    ]:
        answer = (await served.generate("hi", adapter=reference)).json()
        assert answer["adapter"] == {"name": "my-task", "version": digest}
        assert answer["completions"][0]["text"].startswith(adapter_mark(digest))


@pytest.mark.parametrize(
    "reference", ["my-task@ffffff", "my-task@", "my-task@v1", "my-task@FFFFFF"]
)
async def test_no_such_version(served: Served, reference: str) -> None:
    digest = await added(served, "my-task", lora())
    response = await served.generate(adapter=reference)
    assert error_of(response) == (404, "adapter_not_found", "adapter")
    assert digest[:12] in message_of(response)


async def test_the_wrong_field(served: Served) -> None:
    await added(served, "a-lora", lora())
    await added(served, "a-prompt", soft_prompt())
    response = await served.generate(adapter="a-prompt")
    assert error_of(response) == (422, "invalid_request", "adapter")
    assert message_of(response) == "a-prompt is a soft prompt: name it in soft_prompt"
    response = await served.inspect(soft_prompt="a-lora")
    assert error_of(response) == (422, "invalid_request", "soft_prompt")
    assert message_of(response) == "a-lora is a LoRA adapter: name it in adapter"


async def test_an_unknown_name_is_answered_with_those_close_to_it(served: Served) -> None:
    await added(served, "support-intent", lora())
    sentence = "no adapter is called 'suport-intent': did you mean support-intent?"
    response = await served.generate(adapter="suport-intent", stream=True)
    assert error_of(response) == (404, "adapter_not_found", "adapter")
    assert message_of(response) == sentence
    response = await served.get("/adapters/suport-intent")
    assert error_of(response) == (404, "adapter_not_found", "name")
    assert message_of(response) == sentence
    assert "did you mean" not in message_of(await served.get("/adapters/other"))


@pytest.mark.parametrize("name", ["%2E%2E", "a b", "a@b", "-a", "é", "n" * 65])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
async def test_what_cannot_be_a_name(served: Served, method: str, name: str) -> None:
    path = f"/adapters/{name}" + ("/rollback" if method == "POST" else "")
    body = {"source": "my-team/my-task"} if method == "PUT" else {}
    response = await served.client.request(method, path, json=body)
    assert error_of(response) in [
        (422, "invalid_request", "name"),
        (404, "adapter_not_found", "name"),
    ]
    assert not served.app.state.adapters.names.list()


# Refused.


async def test_files_that_are_no_adapter(served: Served) -> None:
    config, weights = lora()
    response = await upload(served, "my-task", [config, (weights[0], b"no tensors")])
    assert error_of(response) == (422, "adapter_rejected", None)
    response = await upload(served, "my-task", lora(rank=64))
    assert error_of(response) == (422, "adapter_rejected", None)
    assert "the limit is 32" in message_of(response)
    assert (await served.get("/adapters")).json() == {"adapters": []}


async def test_another_base_model_takes_force(served: Served) -> None:
    files = lora(base_model="other/model")
    assert error_of(await upload(served, "my-task", files))[:2] == (422, "adapter_rejected")
    assert error_of(await upload(served, "my-task", files, force="false"))[0] == 422
    assert error_of(await upload(served, "my-task", files, force=""))[0] == 422
    assert error_of(await upload(served, "my-task", files, force="False"))[0] == 422
    # As Python's `requests` sends what is true.
    assert (await upload(served, "my-task", files, force="True")).status_code == 200
    assert (await upload(served, "my-task", files, force="true")).status_code == 200


async def test_what_the_engine_cannot_load_replaces_nothing(
    served: Served, engine: FakeEngine, tmp_path: Path
) -> None:
    first = await added(served, "my-task", lora(1))
    folder = tmp_path / "second"
    folder.mkdir()
    for name, content in lora(2):
        (folder / name).write_bytes(content)
    engine.reject(digest_of(folder), "the engine has no room for it: try a lower rank")
    response = await upload(served, "my-task", lora(2))
    assert error_of(response) == (422, "adapter_rejected", None)
    assert message_of(response) == "the engine has no room for it: try a lower rank"
    assert (await served.get("/adapters/my-task")).json()["live"] == first
    answer = (await served.generate(adapter="my-task")).json()
    assert answer["adapter"]["version"] == first


async def test_another_kind_is_a_conflict(served: Served) -> None:
    await added(served, "my-task", lora())
    response = await upload(served, "my-task", soft_prompt())
    assert error_of(response) == (409, "adapter_conflict", "name")


async def test_too_large() -> None:
    async with serving(max_adapter_bytes=1000) as served:
        response = await upload(served, "my-task", lora(rank=16))
        assert error_of(response) == (413, "adapter_too_large", None)
        response = await upload(served, "my-task", [("packed.zip", bytes(4 << 20))])
        assert error_of(response) == (413, "body_too_large", None)
        response = await named(served, "my-task", "x" * (2 << 20))
        assert error_of(response) == (413, "body_too_large", None)


FORM = "multipart/form-data; boundary=b"


def _part(head: str, content: str = "x") -> str:
    return f"--b\r\ncontent-disposition: form-data; {head}\r\n\r\n{content}\r\n"


BROKEN_FORMS = [
    pytest.param("multipart/form-data", "--b--", 422, None, id="no boundary"),
    pytest.param(FORM, "no form", 422, None, id="not a form"),
    pytest.param(FORM, '{"source": "my-team/my-task"}', 422, None, id="json"),
    pytest.param(FORM, "", 422, None, id="empty"),
    pytest.param(FORM, "--b--\r\n", 422, None, id="no parts"),
    pytest.param(FORM, "--b\r\n\r\nx\r\n--b--\r\n", 422, None, id="no header"),
    pytest.param(FORM, _part("filename=a") + "--b--\r\n", 422, None, id="no name"),
    pytest.param(
        FORM,
        _part("name=file; filename=a.zip"),
        422,
        None,
        id="no end",
        # Starlette leaves the file of an unfinished part to the garbage collector.
        marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ),
    pytest.param(FORM, _part("name=file") + "--b--\r\n", 422, "file", id="no file"),
    pytest.param(FORM, _part("name=revision") + "--b--\r\n", 422, "revision", id="unknown"),
    pytest.param(FORM, _part("name=force", "yes") + "--b--\r\n", 422, "force", id="force"),
    *(
        pytest.param(FORM, _part("name=task", text) + "--b--\r\n", 422, "task", id=f"task {text}")
        for text in ("one", "-1", "1.0", " 1", "²", "1000000000")
    ),
    pytest.param(
        FORM, _part("name=file; filename=a") * 65 + "--b--\r\n", 422, None, id="too many files"
    ),
    pytest.param(FORM, _part("name=force", "true") * 65 + "--b--\r\n", 422, None, id="fields"),
    pytest.param(
        FORM, _part("name=force", "x" * (2 << 20)) + "--b--\r\n", 422, None, id="a long field"
    ),
]


@pytest.mark.parametrize(("content_type", "body", "status", "param"), BROKEN_FORMS)
async def test_broken_forms(
    served: Served, content_type: str, body: str, status: int, param: str | None
) -> None:
    headers = {"content-type": content_type}
    response = await served.client.put("/adapters/x", content=body.encode(), headers=headers)
    assert error_of(response)[::2] == (status, param)
    assert error_of(response)[1] in {"invalid_request", "adapter_rejected"}


@pytest.mark.parametrize(
    "folder",
    ["/home/me/out/", "runs/a/out/", "../out/", "C:/runs/out/", "C:\\\\runs\\\\", "a\\\\b/"],
)
async def test_the_last_part_of_a_file_name_counts(served: Served, folder: str) -> None:
    parts = [
        _part(f'name="file"; filename="{folder}{name}"', "").encode().removesuffix(b"\r\n")
        + content
        + b"\r\n"
        for name, content in lora()
    ]
    response = await served.client.put(
        "/adapters/x", content=b"".join(parts) + b"--b--\r\n", headers={"content-type": FORM}
    )
    assert response.status_code == 200, response.text


async def test_several_adapters_in_a_form_are_named(served: Served) -> None:
    files = [(f"{folder}{name}", content) for folder in ("/a/", "b/") for name, content in lora()]
    response = await upload(served, "x", files)
    assert error_of(response) == (422, "adapter_rejected", None)
    assert message_of(response) == (
        "adapter files lie in 'a' and in 'b': give the folder of one adapter"
    )


async def test_a_file_without_a_name_is_told_to_have_one(served: Served) -> None:
    body = _part("name=file", "{}") + "--b--\r\n"
    response = await served.client.put(
        "/adapters/x", content=body.encode(), headers={"content-type": FORM}
    )
    assert error_of(response) == (422, "invalid_request", "file")
    assert message_of(response).startswith("file came without a file name")


async def test_a_form_in_any_case(served: Served) -> None:
    request = served.client.build_request("PUT", "/adapters/x", files=[("file", f) for f in lora()])
    sent_as = request.headers["content-type"].replace("multipart/form", "Multipart/Form")
    request.headers["content-type"] = sent_as
    assert (await served.client.send(request)).status_code == 200


@pytest.mark.parametrize(("num_bytes", "status"), [(1000, 422), (1_500_000, 413)])
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/gzip",
        "application/zip",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
    ],
)
async def test_an_archive_as_the_body(
    served: Served, num_bytes: int, status: int, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    content = b"\x1f\x8b".ljust(num_bytes, b"\0")
    response = await served.client.put("/adapters/x", content=content, headers=headers)
    assert response.status_code == status
    assert message_of(response).startswith(
        "the body is neither a form nor a source in JSON: send the files with `curl -X PUT -F"
    )


async def test_a_source_is_taken_however_it_is_sent(served: Served) -> None:
    for content_type in ("application/x-www-form-urlencoded", "text/plain", "Application/JSON"):
        response = await served.client.put(
            "/adapters/x", content=b'{"source": 7}', headers={"content-type": content_type}
        )
        assert error_of(response) == (422, "invalid_request", "source")


async def test_a_source_after_a_byte_order_mark(served: Served) -> None:
    content = b'\xef\xbb\xbf{"source": 7}'
    headers = {"content-type": "application/json"}
    response = await served.client.put("/adapters/x", content=content, headers=headers)
    assert error_of(response) == (422, "invalid_request", "source")


# Found by the server.


async def test_a_folder_below_a_root(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "root" / "team" / "trained", ARCHITECTURE.modules)
    async with serving(adapter_root=(tmp_path / "root",)) as served:
        for name, source in [("a-task", str(folder)), ("b-task", "team/trained")]:
            answer = (await named(served, name, source)).json()
            assert answer["live"] == digest_of(folder)
            assert answer["versions"][0]["source"] == source


@pytest.mark.parametrize("source", ["{}/outside", "../outside", "{}/root", "{}/root/link", "/etc"])
async def test_a_folder_outside(tmp_path: Path, source: str) -> None:
    outside = write_lora(tmp_path / "outside", ARCHITECTURE.modules)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(outside)
    async with serving(adapter_root=(tmp_path / "root",)) as served:
        response = await named(served, "my-task", source.format(tmp_path))
        assert error_of(response) == (422, "adapter_rejected", "source")


async def test_a_snapshot_of_the_hubs_cache(tmp_path: Path) -> None:
    """Its files are links to blobs: followed below the root, and nowhere else."""
    blobs = write_lora(tmp_path / "root" / "blobs", ARCHITECTURE.modules)
    outside = write_lora(tmp_path / "outside", ARCHITECTURE.modules)
    for folder, target in {"snapshots/0123abcd": blobs, "snapshots/bad": outside}.items():
        (tmp_path / "root" / folder).mkdir(parents=True)
        for file in target.iterdir():
            (tmp_path / "root" / folder / file.name).symlink_to(file)
    async with serving(adapter_root=(tmp_path / "root",)) as served:
        answer = await named(served, "my-task", "snapshots/0123abcd")
        assert answer.json()["live"] == digest_of(blobs)
        refused = await named(served, "my-task", "snapshots/bad")
        assert error_of(refused)[:2] == (422, "adapter_rejected")
        message = refused.json()["error"]["message"]
        assert message.startswith("adapter_config.json is a link that leads outside")


async def test_the_output_folder_of_a_trainer(tmp_path: Path) -> None:
    for number, folder in enumerate(["checkpoint-500", "checkpoint-1000"]):
        write_lora(tmp_path / "out" / folder, ARCHITECTURE.modules, seed=number)
    async with serving(adapter_root=(tmp_path,)) as served:
        refused = await named(served, "my-task", "out")
        assert refused.json()["error"]["message"] == (
            "adapter files lie in 'checkpoint-1000' and in 'checkpoint-500': give the folder of "
            "one adapter"
        )
        write_lora(tmp_path / "out", ARCHITECTURE.modules, seed=2)
        answer = await named(served, "my-task", "out")
        assert answer.json()["live"] == digest_of(tmp_path / "out")


async def test_a_revision_of_a_folder(tmp_path: Path) -> None:
    write_lora(tmp_path / "trained", ARCHITECTURE.modules)
    async with serving(adapter_root=(tmp_path,)) as served:
        response = await named(served, "my-task", "trained", revision="main")
        assert error_of(response) == (422, "invalid_request", "revision")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ("{", 400, None),
        ("", 400, None),
        ("[]", 422, None),
        ('"my-team/my-task"', 422, None),
        ("{}", 422, "source"),
        ('{"source": ""}', 422, "source"),
        ('{"source": 1}', 422, "source"),
        ('{"source": "a/b", "force": "true"}', 422, "force"),
        ('{"source": "a/b", "task": "1"}', 422, "task"),
        ('{"source": "a/b", "task": -1}', 422, "task"),
        ('{"source": "a/b", "task": true}', 422, "task"),
        ('{"source": "a/b", "task": 1000000000}', 422, "task"),
        ('{"source": "a/b", "version": "1"}', 422, "version"),
        ('{"source": "a\\u0000b"}', 422, "source"),
        ('{"source": "\\ud800"}', 400, None),
    ],
)
async def test_wrong_sources(served: Served, body: str, status: int, param: str | None) -> None:
    headers = {"content-type": "application/json"}
    response = await served.client.put("/adapters/x", content=body.encode(), headers=headers)
    assert error_of(response) == (status, "invalid_request", param)


# Rolled back.


async def test_rollback(served: Served) -> None:
    first = await added(served, "my-task", lora(1))
    second = await added(served, "my-task", lora(2))
    answer = (await rolled_back(served, "my-task")).json()
    assert answer["live"] == first
    assert [each["version"] for each in answer["versions"]] == [second, first]
    generated = (await served.generate(adapter="my-task")).json()
    assert generated["adapter"]["version"] == first
    response = await rolled_back(served, "my-task")
    assert error_of(response) == (409, "adapter_conflict", "version")
    answer = (await rolled_back(served, "my-task", version=second[:6])).json()
    assert answer["live"] == second


async def test_rollback_without_a_body(served: Served) -> None:
    first = await added(served, "my-task", lora(1))
    await added(served, "my-task", lora(2))
    response = await served.client.post("/adapters/my-task/rollback")
    assert response.json()["live"] == first


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("other", {}, (404, "adapter_not_found", "name")),
        ("my-task", {"version": "ffffff"}, (404, "adapter_not_found", "version")),
        ("my-task", {"version": "v1"}, (404, "adapter_not_found", "version")),
        ("my-task", {"version": ""}, (422, "invalid_request", "version")),
        ("my-task", {"version": 1}, (422, "invalid_request", "version")),
        ("my-task", {"digest": "ffffff"}, (422, "invalid_request", "digest")),
        ("my-task", [], (422, "invalid_request", None)),
    ],
)
async def test_wrong_rollbacks(
    served: Served, name: str, body: Any, error: tuple[int, str, str | None]
) -> None:
    await added(served, "my-task", lora())
    response = await served.client.post(f"/adapters/{name}/rollback", json=body)
    assert error_of(response) == error


# While requests run.


async def test_a_stream_ends_on_the_version_it_began_with(
    served: Served, engine: FakeEngine
) -> None:
    first = await added(served, "my-task", lora(1))
    engine.hold(scores=False)
    running = asyncio.create_task(served.generate("hi", adapter="my-task", stream=True))
    await until(lambda: len(engine.open) == 1)
    second = await added(served, "my-task", lora(2))
    following = asyncio.create_task(served.generate("hi", adapter="my-task", stream=True))
    await until(lambda: len(engine.open) == 2)
    engine.release()
    for stream, digest in [(running, first), (following, second)]:
        *pieces, ending = events_of(await stream)
        assert "".join(piece["text"] for piece in pieces) == f"{adapter_mark(digest)}hi"
        assert ending["adapter"]["version"] == digest
    await until(lambda: engine.unloads == [first])
    assert engine.loads == [first, second]


async def test_remove(served: Served) -> None:
    await added(served, "my-task", lora())
    response = await served.client.delete("/adapters/my-task")
    assert (response.status_code, response.content) == (204, b"")
    for response in (
        await served.get("/adapters/my-task"),
        await served.generate(adapter="my-task"),
        await served.client.delete("/adapters/my-task"),
        await rolled_back(served, "my-task"),
    ):
        assert error_of(response)[:2] == (404, "adapter_not_found")
    assert (await served.get("/adapters")).json() == {"adapters": []}


async def test_remove_waits_for_a_stream(served: Served, engine: FakeEngine) -> None:
    digest = await added(served, "my-task", lora())
    engine.hold()
    running = asyncio.create_task(served.generate("hi", adapter="my-task", stream=True))
    await until_in_flight(served, 1)
    await until(lambda: len(engine.open) == 1)
    removing = asyncio.create_task(served.client.delete("/adapters/my-task"))
    await until(lambda: not served.app.state.adapters.names.list())
    response = await served.generate(adapter="my-task")
    assert error_of(response) == (404, "adapter_not_found", "adapter")
    assert not removing.done()
    assert engine.unloads == []
    engine.release()
    *_, ending = events_of(await running)
    assert ending["adapter"] == {"name": "my-task", "version": digest}
    assert (await removing).status_code == 204
    assert engine.unloads == [digest]
    assert error_of(await served.get("/adapters/my-task"))[0] == 404


async def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    async with serving(adapter_store=tmp_path / "store") as served:
        await added(served, "my-task", lora(1))
        await added(served, "my-task", lora(2))
        before = (await rolled_back(served, "my-task")).json()
    async with serving(adapter_store=tmp_path / "store") as served:
        answer = (await served.generate(adapter="my-task")).json()
        assert answer["adapter"] == {"name": "my-task", "version": before["live"]}
        after = (await served.get("/adapters/my-task")).json()
        assert [each["version"] for each in after["versions"]] == [
            each["version"] for each in before["versions"]
        ]


# Who may change them, and when.


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer", "Bearer ", "secret", "Basic secret"]
)
async def test_the_admin_key_is_required(method: str, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    async with serving(admin_key="secret") as served:
        response = await served.client.request(method, path, headers=headers)
        assert error_of(response) == (401, "key_required", None)
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["secret", "naïve"])
@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
async def test_with_the_admin_key(key: str, host: str) -> None:
    headers = {b"authorization": f"Bearer {key}".encode(), b"x-forwarded-for": b"192.0.2.7"}
    async with serving(admin_key=key) as served, client_of(served.app, host) as client:
        files = [("file", file) for file in lora()]
        response = await client.put("/adapters/my-task", files=files, headers=headers)
        assert response.status_code == 200
        response = await client.delete("/adapters/my-task", headers=headers)
        assert response.status_code == 204


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("host", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "testclient", ""])
async def test_another_machine_needs_a_key(
    served: Served, method: str, path: str, host: str
) -> None:
    async with client_of(served.app, host) as client:
        response = await client.request(method, path)
    assert error_of(response) == (403, "not_permitted", None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1"])
async def test_this_machine_needs_none(served: Served, host: str) -> None:
    async with client_of(served.app, host) as client:
        response = await client.delete("/adapters/my-task")
    assert error_of(response) == (404, "adapter_not_found", "name")


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("header", ["origin", "x-forwarded-for", "forwarded", "x-real-ip", "via"])
async def test_what_is_sent_for_others_needs_a_key(
    served: Served, method: str, path: str, header: str
) -> None:
    response = await served.client.request(method, path, headers={header: "127.0.0.1"})
    assert error_of(response) == (403, "not_permitted", None)


@pytest.mark.parametrize(
    ("origin", "status"), [("http://softserve", 404), ("https://app.example", 403)]
)
async def test_a_page_of_this_server_needs_no_key_and_a_listed_one_does(
    origin: str, status: int
) -> None:
    async with serving(cors_origin=("https://app.example",)) as served:
        response = await served.client.delete("/adapters/my-task", headers={"origin": origin})
    assert response.status_code == status


async def test_everybody_may_look() -> None:
    async with serving(admin_key="secret") as served, client_of(served.app, "192.0.2.1") as client:
        assert (await client.get("/adapters")).json() == {"adapters": []}
        assert error_of(await client.get("/adapters/my-task"))[0] == 404


async def test_an_upload_is_not_read_without_permission(served: Served) -> None:
    """It is answered first; what is read then is thrown away."""
    happened: list[str] = []

    async def receive() -> Message:
        happened.append("read")
        return {"type": "http.request", "body": b"", "more_body": len(happened) < 5}

    async def send(message: Message) -> None:
        happened.append(message.get("body", b"").decode() or str(message.get("status", "end")))

    headers = [(b"content-type", FORM.encode()), (b"transfer-encoding", b"chunked")]
    await served.app(
        {
            "type": "http",
            "method": "PUT",
            "path": "/adapters/my-task",
            "query_string": b"",
            "headers": headers,
            "client": ("192.0.2.1", 123),
        },
        receive,
        send,
    )
    assert happened[0] == "403"
    assert "not_permitted" in happened[1]
    assert happened[2:] == ["read", "read", "read", "end"]


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_while_starting(engine: FakeEngine, method: str, path: str) -> None:
    engine.hold_start()
    async with starting(engine) as served:
        response = await served.client.request(method, path, json=BODIES.get((method, path)))
        assert error_of(response) == (503, "engine_starting", None)
        assert response.headers["retry-after"] == "5"
        assert (await served.get("/adapters")).json() == {"adapters": []}
        engine.release_start()
        await until_ready(served)
        assert (await upload(served, "my-task", lora())).status_code == 200


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_while_draining(served: Served, method: str, path: str) -> None:
    await served.lifecycle.drain(0)
    response = await served.client.request(method, path, json=BODIES.get((method, path)))
    assert error_of(response) == (503, "server_draining", None)
