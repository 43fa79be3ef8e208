"""A name that means several versions at once: who gets which, and how it ends."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_files import write_lora
from tests.api.support import Served, error_of, serving, until
from tests.api.test_adapters import added, lora, message_of, soft_prompt, upload
from tests.api.test_icl import TEMPLATE
from tests.fake_engine import ARCHITECTURE, FakeEngine, adapter_mark
from tests.key_files import Headers, new_key

NAME = "my-task"
PATH = f"/adapters/{NAME}"
TEMPLATE_PATH = "/icl/templates/mood"


async def beside(served: Served, seed: int) -> str:
    """The digest of a version that is put beside the live one."""
    files = [("file", file) for file in lora(seed)]
    response = await served.client.put(PATH, files=files, params={"live": "false"})
    assert response.status_code == 200, response.text
    digest: str = response.json()["versions"][0]["version"]
    return digest


async def two_versions(served: Served) -> tuple[str, str]:
    """The live one, and one beside it."""
    return await added(served, NAME, lora(1)), await beside(served, 2)


async def split(served: Served, versions: dict[str, int], **fields: Any) -> dict[str, Any]:
    response = await served.client.post(f"{PATH}/split", json={"versions": versions} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def post(served: Served, action: str, **body: Any) -> httpx.Response:
    return await served.client.post(f"{PATH}/{action}", json=body)


async def version_of(served: Served, session: str | None = None) -> str:
    """The version that answers, which is the one that the answer names."""
    answer = (
        await served.client.post(
            "/generate",
            json={"prompt": "hi", "adapter": NAME},
            headers={} if session is None else {"x-softserve-session": session},
        )
    ).json()
    version: str = answer["adapter"]["version"]
    assert answer["completions"][0]["text"] == f"{adapter_mark(version)}hi"
    return version


async def versions_of(served: Served, number: int = 64) -> set[str]:
    """Of as many requests as are enough to see two versions of one weight."""
    return {await version_of(served) for _ in range(number)}


# Put beside.


async def test_what_is_put_beside_the_live_version(served: Served, engine: FakeEngine) -> None:
    old, new = await two_versions(served)
    shown = (await served.get(PATH)).json()
    assert shown["live"] == old
    assert [(each["version"], each["live"]) for each in shown["versions"]] == [
        (new, False),
        (old, True),
    ]
    assert shown["versions"][0]["effect"]["changed"]
    assert await version_of(served) == old
    pinned = (await served.generate("hi", adapter=f"{NAME}@{new[:6]}")).json()
    assert pinned["adapter"]["version"] == new


async def test_nothing_to_put_it_beside(served: Served) -> None:
    files = [("file", file) for file in lora()]
    response = await served.client.put(PATH, files=files, params={"live": "false"})
    assert error_of(response) == (409, "adapter_conflict", "name")
    assert message_of(response) == (
        "my-task has no live version beside which another could be put: leave live=false "
        "(--no-live) out"
    )
    assert (await served.get("/adapters")).json() == {"adapters": []}


async def test_live_is_true_or_false(served: Served) -> None:
    files = [("file", file) for file in lora()]
    response = await served.client.put(PATH, files=files, params={"live": "maybe"})
    assert error_of(response) == (422, "invalid_request", "live")


async def test_what_is_live_is_not_put_beside_itself(served: Served) -> None:
    old = await added(served, NAME, lora(1))
    assert await beside(served, 1) == old
    assert await version_of(served) == old


# Split.


async def test_both_versions_answer(served: Served) -> None:
    old, new = await two_versions(served)
    answer = await split(served, {old[:6]: 1, new: 1})
    assert answer["live"] == old
    assert answer["split"] == {"versions": {old: 1, new: 1}, "sticky": "none"}
    assert (await served.get(PATH)).json()["split"] == answer["split"]
    assert await versions_of(served) == {old, new}
    counted = {
        each["version"]: each["requests"] for each in (await served.get(PATH)).json()["versions"]
    }
    assert counted[old] + counted[new] == 64
    assert min(counted.values()) > 0
    pinned = {
        (await served.generate("hi", adapter=f"{NAME}@{old}")).json()["adapter"]["version"]
        for _ in range(64)
    }
    assert pinned == {old}


async def test_an_inspection_follows_the_split(served: Served) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    inspected = [(await served.inspect("hi", adapter=NAME)).json() for _ in range(64)]
    assert {each["adapter"]["version"] for each in inspected} == {old, new}


async def test_a_session_stays_with_its_version(served: Served) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 90, new: 10}, sticky="session")
    sessions = [f"session-{i}" for i in range(100)]
    tenth = {session: await version_of(served, session) for session in sessions}
    assert set(tenth.values()) == {old, new}
    assert {session: await version_of(served, session) for session in sessions} == tenth

    await split(served, {old: 70, new: 30}, sticky="session")
    third = {session: await version_of(served, session) for session in sessions}
    moves = Counter((tenth[session], third[session]) for session in sessions)
    assert moves[new, old] == 0
    assert moves[old, new] > 0


@pytest.mark.parametrize(("sticky", "session"), [("key", "a"), ("session", None), ("session", "")])
async def test_who_is_nobody_in_particular_is_dealt_at_random(
    served: Served, sticky: str, session: str | None
) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1}, sticky=sticky)
    assert {await version_of(served, session) for _ in range(64)} == {old, new}


async def test_a_key_stays_with_its_version(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    admin = new_key(file, "root", "admin")
    keys = [new_key(file, f"key-{i}") for i in range(16)]
    async with serving(keys_file=file) as served:
        served.client.headers.update(admin)
        old, new = await two_versions(served)
        await split(served, {old: 1, new: 1}, sticky="key")

        async def version_for(key: Headers) -> str:
            body = {"prompt": "hi", "adapter": NAME}
            answer = (await served.client.post("/generate", json=body, headers=key)).json()
            version: str = answer["adapter"]["version"]
            return version

        first = [await version_for(key) for key in keys]
        assert set(first) == {old, new}
        assert [await version_for(key) for key in keys] == first


async def test_a_soft_prompt_is_split_too(served: Served) -> None:
    old = await added(served, NAME, soft_prompt(seed=1))
    files = [("file", file) for file in soft_prompt(seed=2)]
    await served.client.put(PATH, files=files, params={"live": "false"})
    new = (await served.get(PATH)).json()["versions"][0]["version"]
    await split(served, {old: 1, new: 1})
    answers = [(await served.generate("hi", soft_prompt=NAME)).json() for _ in range(64)]
    assert {each["soft_prompt"]["version"] for each in answers} == {old, new}


async def test_all_versions_of_a_split_stay_loaded(served: Served, engine: FakeEngine) -> None:
    old, new = await two_versions(served)
    third = await beside(served, 3)
    await split(served, {old: 1, new: 1, third: 1})
    assert set(engine.loaded) == {old, new, third}
    await split(served, {old: 1, new: 1})
    await until(lambda: set(engine.loaded) == {old, new})
    await post(served, "promote")
    await until(lambda: set(engine.loaded) == {new})


async def test_more_versions_than_the_engine_holds(engine: FakeEngine) -> None:
    async with serving(engine, max_loaded_adapters=1) as served:
        old, new = await two_versions(served)
        await split(served, {old: 1, new: 1})
        assert await versions_of(served) == {old, new}


async def test_a_version_that_cannot_be_loaded(served: Served, engine: FakeEngine) -> None:
    old, new = await two_versions(served)
    await until(lambda: set(engine.loaded) == {old})
    engine.reject(new, "it does not fit")
    response = await post(served, "split", versions={old: 1, new: 1})
    assert error_of(response) == (422, "adapter_rejected", None)
    assert (await served.get(PATH)).json()["split"] is None
    assert await versions_of(served) == {old}


async def test_what_was_tried_is_kept(served: Served) -> None:
    """However many versions are added meanwhile."""
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    for seed in range(3, 12):
        await beside(served, seed)
    assert await versions_of(served) == {old, new}


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("other", {"versions": {"aaaaaa": 1, "bbbbbb": 1}}, (404, "adapter_not_found", "name")),
        (NAME, {"versions": {"aaaaaa": 1, "bbbbbb": 1}}, (404, "adapter_not_found", "versions")),
        (NAME, {"versions": {"v1": 1, "v2": 1}}, (404, "adapter_not_found", "versions")),
        (NAME, {"versions": {"\0": 1, "a" * 9999: 1}}, (404, "adapter_not_found", "versions")),
        (NAME, {"versions": {"a" * 9999: 0}}, (422, "invalid_request", "versions")),
        (NAME, {"versions": {}}, (422, "invalid_request", "versions")),
        (NAME, {}, (422, "invalid_request", "versions")),
        (NAME, {"versions": {"aaaaaa": 0}}, (422, "invalid_request", "versions")),
        (NAME, {"versions": {"aaaaaa": 0.5}}, (422, "invalid_request", "versions")),
        (NAME, {"versions": ["aaaaaa"]}, (422, "invalid_request", "versions")),
        (NAME, {"versions": {"aaaaaa": 1}, "sticky": "ip"}, (422, "invalid_request", "sticky")),
        (NAME, {"versions": {"aaaaaa": 1}, "percent": 1}, (422, "invalid_request", "percent")),
    ],
)
async def test_wrong_splits(
    served: Served, name: str, body: Any, error: tuple[int, str, str | None]
) -> None:
    await two_versions(served)
    response = await served.client.post(f"/adapters/{name}/split", json=body)
    assert error_of(response) == error
    assert len(message_of(response)) < 300


async def test_a_split_of_one_version(served: Served) -> None:
    old, new = await two_versions(served)
    response = await post(served, "split", versions={old: 1})
    assert error_of(response) == (422, "invalid_request", "versions")
    assert message_of(response) == (
        "a split is among several versions: name another of my-task besides; it has "
        f"{new[:12]}, {old[:12]}"
    )


# How it ends.


async def test_a_promotion_ends_it(served: Served) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    answer = (await post(served, "promote")).json()
    assert (answer["live"], answer["split"]) == (new, None)
    assert await versions_of(served) == {new}
    assert (await post(served, "rollback")).json()["live"] == old


async def test_a_promotion_of_a_named_version(served: Served) -> None:
    old, new = await two_versions(served)
    third = await beside(served, 3)
    await split(served, {old: 1, new: 1, third: 1})
    refused = await served.client.post(f"{PATH}/promote")
    assert error_of(refused) == (409, "adapter_conflict", "version")
    assert await versions_of(served, 128) == {old, new, third}
    answer = (await post(served, "promote", version=new[:6])).json()
    assert (answer["live"], answer["split"]) == (new, None)


async def test_a_promotion_without_anything_tried(served: Served) -> None:
    await added(served, NAME, lora(1))
    assert error_of(await post(served, "promote")) == (409, "adapter_conflict", "version")
    for version, status in (("ffffff", 404), ("v1", 404), ("", 422)):
        assert error_of(await post(served, "promote", version=version))[0] == status


async def test_a_rollback_ends_it(served: Served, engine: FakeEngine) -> None:
    """The version that was live when it began is live alone, though there is an older one."""
    await added(served, NAME, lora(0))
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    answer = (await served.client.post(f"{PATH}/rollback")).json()
    assert (answer["live"], answer["split"]) == (old, None)
    assert await versions_of(served) == {old}
    await until(lambda: set(engine.loaded) == {old})


async def test_a_rollback_to_the_live_version_ends_it(served: Served) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    answer = (await post(served, "rollback", version=old)).json()
    assert (answer["live"], answer["split"]) == (old, None)


async def test_a_removal_ends_it(served: Served) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    assert (await served.client.delete(PATH)).status_code == 204
    again = await added(served, NAME, lora(1))
    assert (await served.get(PATH)).json()["split"] is None
    assert again == old


async def test_a_new_live_version_is_refused(served: Served) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    for refused in (await upload(served, NAME, lora(2)), await upload(served, NAME, lora(3))):
        assert error_of(refused) == (409, "adapter_conflict", "name")
        assert message_of(refused) == (
            "my-task is split between versions, and a new live one would end that: promote one or "
            "roll back first, or put this one beside them (live=false, --no-live)"
        )
    assert (await upload(served, NAME, lora(1))).json()["split"]["versions"] == {old: 1, new: 1}
    assert await versions_of(served) == {old, new}


async def test_the_watched_folder_does_not_end_it(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "other", ARCHITECTURE.modules, 4, seed=7)
    async with serving(adapter_dir=tmp_path / "adapters") as served:
        old, new = await two_versions(served)
        await split(served, {old: 1, new: 1})
        shutil.copytree(folder, tmp_path / "adapters" / NAME)
        names = served.app.state.adapters.names
        await until(lambda: names.get(NAME).rejected is not None)
        assert names.get(NAME).rejected.startswith("my-task is split between versions")
        assert await versions_of(served) == {old, new}


async def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    sessions = [f"session-{i}" for i in range(32)]
    async with serving(adapter_store=tmp_path / "store") as served:
        old, new = await two_versions(served)
        before = await split(served, {old: 1, new: 1}, sticky="session")
        got = {session: await version_of(served, session) for session in sessions}
    async with serving(adapter_store=tmp_path / "store") as served:
        assert (await served.get(PATH)).json()["split"] == before["split"]
        assert {session: await version_of(served, session) for session in sessions} == got


async def test_a_version_that_is_damaged_on_disk_ends_it(tmp_path: Path) -> None:
    async with serving(adapter_store=tmp_path / "store") as served:
        old, new = await two_versions(served)
        await split(served, {old: 1, new: 1})
    (tmp_path / "store" / "versions" / new / "adapter_model.safetensors").write_bytes(b"")
    async with serving(adapter_store=tmp_path / "store") as served:
        shown = (await served.get(PATH)).json()
        assert (shown["live"], shown["split"]) == (old, None)
        assert shown["rejected"].startswith(f"{new[:12]}, which had a part of its requests, is")
        assert await versions_of(served) == {old}


# Templates.


async def template_beside(served: Served, **fields: Any) -> str:
    response = await served.client.put(
        TEMPLATE_PATH, json=TEMPLATE | fields, params={"live": "false"}
    )
    assert response.status_code == 200, response.text
    digest: str = response.json()["versions"][0]["version"]
    return digest


async def two_templates(served: Served) -> tuple[str, str]:
    live = (await served.client.put(TEMPLATE_PATH, json=TEMPLATE)).json()["live"]
    return live, await template_beside(served, instruction="What mood?")


async def filled(served: Served, path: str, session: str | None = None) -> dict[str, Any]:
    response = await served.client.post(
        f"/icl/{path}",
        json={"template": "mood", "inputs": {"text": "hot soup"}},
        headers={} if session is None else {"x-softserve-session": session},
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_a_template_is_split(served: Served) -> None:
    old, new = await two_templates(served)
    body = {"versions": {old[:6]: 1, new[:6]: 1}, "sticky": "session"}
    answer = (await served.client.post(f"{TEMPLATE_PATH}/split", json=body)).json()
    assert answer["split"] == {"versions": {old: 1, new: 1}, "sticky": "session"}
    by_session = {}
    for session in map(str, range(32)):
        versions = {
            (await filled(served, path, session))["template"]["version"]
            for path in ("generate", "render", "generate")
        }
        assert len(versions) == 1
        by_session[session] = versions.pop()
    assert set(by_session.values()) == {old, new}
    texts = {
        (answer["template"]["version"], answer["completions"][0]["text"])
        for answer in [await filled(served, "generate") for _ in range(64)]
    }
    assert texts == {(old, "Mood"), (new, "What")}

    promoted = (await served.client.post(f"{TEMPLATE_PATH}/promote")).json()
    assert (promoted["live"], promoted["split"]) == (new, None)
    assert promoted["template"]["instruction"] == "What mood?"
    rolled_back = (await served.client.post(f"{TEMPLATE_PATH}/rollback")).json()
    assert rolled_back["live"] == old


async def test_the_adapter_of_a_template_is_dealt_too(served: Served) -> None:
    old, new = await two_versions(served)
    await split(served, {old: 1, new: 1})
    await served.client.put(TEMPLATE_PATH, json=TEMPLATE | {"adapter": NAME})
    answers = [await filled(served, "generate") for _ in range(64)]
    assert {each["adapter"]["version"] for each in answers} == {old, new}


async def test_a_new_live_template_is_refused(served: Served) -> None:
    old, new = await two_templates(served)
    await served.client.post(f"{TEMPLATE_PATH}/split", json={"versions": {old: 1, new: 1}})
    response = await served.client.put(TEMPLATE_PATH, json=TEMPLATE | {"instruction": "Third?"})
    assert error_of(response) == (409, "template_conflict", "name")


async def test_every_version_of_a_split_is_warmed(served: Served, engine: FakeEngine) -> None:
    warm = TEMPLATE | {"warm": True}
    old = (await served.client.put(TEMPLATE_PATH, json=warm)).json()["live"]
    new = await template_beside(served, warm=True, instruction="What mood?")
    engine.finished.clear()
    await served.client.post(f"{TEMPLATE_PATH}/split", json={"versions": {old: 1, new: 1}})
    assert len(engine.finished) == 2
