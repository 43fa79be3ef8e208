"""Two whole replicas in this process, over a shared folder and over an S3 server."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.versions.origin import following
from tests.adapter_files import (
    Files,
    as_files,
    lora_config,
    lora_tensors,
    multitask_config,
    multitask_tensors,
    write_lora,
)
from tests.api.support import Served, add_lora, error_of, serving, until
from tests.fake_engine import ARCHITECTURE, HIDDEN_SIZE, FakeEngine, adapter_mark
from tests.moto_server import BUCKET, Way, asking, s3_server, way_to

FOLDER = "a folder"
S3 = "S3"
TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(params=[FOLDER, S3])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == FOLDER:
        (tmp_path / "origin").mkdir()
        yield f"file://{tmp_path}/origin"
    else:
        with asking(request.getfixturevalue("s3")):
            yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


@asynccontextmanager
async def replica(url: str, **settings: Any) -> AsyncIterator[Served]:
    async with serving(FakeEngine(), origin=url, **settings) as served:
        yield served


@pytest.fixture
async def a(url: str) -> AsyncIterator[Served]:
    async with replica(url) as served:
        yield served


@pytest.fixture
async def b(a: Served, url: str) -> AsyncIterator[Served]:
    async with replica(url) as served:
        yield served


def files(seed: int = 0) -> Files:
    return as_files(lora_config(4), lora_tensors(ARCHITECTURE.modules, 4, seed))


async def put(served: Served, name: str, files: Files, query: str = "", **fields: str) -> Any:
    parts = [("file", file) for file in files]
    answer = await served.client.put(f"/adapters/{name}{query}", files=parts, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def put_template(served: Served, name: str, instruction: str) -> Any:
    body = TEMPLATE | {"instruction": instruction}
    answer = await served.client.put(f"/icl/templates/{name}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def text(served: Served, adapter: str) -> str:
    answer = await served.generate("hi", adapter=adapter)
    assert answer.status_code == 200, answer.text
    written: str = answer.json()["completions"][0]["text"]
    return written


async def prompt(served: Served, template: str) -> str:
    body = {"template": template, "inputs": {"text": "hi"}}
    answer = await served.client.post("/icl/render", json=body)
    assert answer.status_code == 200, answer.text
    written: str = answer.json()["prompts"][0]["prompt"]
    return written


def live(served: Served, name: str) -> str | None:
    record = served.app.state.adapters.names.store.record(name)
    return None if record is None else record.live


async def shown(served: Served, name: str) -> Any:
    """What is told of an adapter, but for what each replica tells of itself."""
    answer = (await served.get(f"/adapters/{name}")).json()
    for version in answer.get("versions", ()):
        del version["loaded"], version["requests"]
    answer.pop("requests", None)
    return answer


# What one replica does, the other has.


async def test_an_upload_is_live_on_both(a: Served, b: Served) -> None:
    for served, seed in ((a, 0), (b, 1), (a, 2)):
        digest = (await put(served, "mine", files(seed)))["live"]
        await until(lambda digest=digest: live(a, "mine") == live(b, "mine") == digest)  # type: ignore[misc]
        assert await text(a, "mine") == await text(b, "mine") == f"{adapter_mark(digest)}hi"
    assert await shown(a, "mine") == await shown(b, "mine")
    assert len((await shown(b, "mine"))["versions"]) == 3


async def test_pointers(a: Served, b: Served) -> None:
    one = (await put(a, "mine", files(0)))["live"]
    two = (await put(b, "mine", files(1)))["live"]
    assert (await a.client.post("/adapters/mine/rollback")).json()["live"] == one
    await until(lambda: live(b, "mine") == one)
    split = {"versions": {one: 1, two: 1}}
    assert (await b.client.post("/adapters/mine/split", json=split)).status_code == 200
    await until(lambda: a.app.state.adapters.names.get("mine").split is not None)
    shadow = {"version": two, "percent": 10}
    assert (await a.client.post("/adapters/mine/shadow", json=shadow)).status_code == 200
    await until(lambda: b.app.state.adapters.names.get("mine").shadow is not None)
    assert await shown(a, "mine") == await shown(b, "mine")
    conflict = await a.client.put("/adapters/mine", files=[("file", each) for each in files(2)])
    assert error_of(conflict)[:2] == (409, "adapter_conflict")
    assert (await b.client.post("/adapters/mine/promote")).json()["live"] == two
    await until(lambda: live(a, "mine") == two)
    assert (await a.client.delete("/adapters/mine")).status_code == 204
    await until(lambda: live(b, "mine") is None)
    assert error_of(await b.generate(adapter="mine"))[:2] == (404, "adapter_not_found")


async def test_what_was_not_seen_yet_is_fetched_at_once(
    a: Served, b: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody looks by itself.
    monkeypatch.setattr(following, "POLL_SECONDS", 1000.0)
    await asyncio.sleep(0.6)
    one = (await put(a, "mine", files(0)))["live"]
    assert await text(b, "mine") == f"{adapter_mark(one)}hi"
    two = (await put(a, "mine", files(1), "?live=false"))["versions"][0]["version"]
    assert await text(b, f"mine@{two[:8]}") == f"{adapter_mark(two)}hi"
    await put_template(a, "mood", "Mood?")
    assert await prompt(b, "mood") == "Mood?\n\nhi ="
    assert error_of(await b.generate(adapter="nothing"))[:2] == (404, "adapter_not_found")


async def test_an_old_version_is_fetched_when_it_is_asked_for(a: Served, url: str) -> None:
    one, two = [(await put(a, "mine", files(seed)))["live"] for seed in range(2)]
    async with replica(url) as b:
        assert await shown(b, "mine") == await shown(a, "mine")
        assert not b.app.state.adapters.names.store.has(one)
        assert await text(b, "mine") == f"{adapter_mark(two)}hi"
        assert await text(b, f"mine@{one}") == f"{adapter_mark(one)}hi"


async def test_templates(a: Served, b: Served) -> None:
    one = (await put_template(a, "mood", "Mood?"))["live"]
    two = (await put_template(b, "mood", "Tone?"))["live"]
    names = [each.app.state.templates.names for each in (a, b)]
    await until(lambda: all(each.get("mood").live == two for each in names))
    assert await prompt(a, "mood") == await prompt(b, "mood") == "Tone?\n\nhi ="
    assert await prompt(a, f"mood@{one[:8]}") == "Mood?\n\nhi ="
    assert (await a.client.post("/icl/templates/mood/rollback")).status_code == 200
    await until(lambda: names[1].get("mood").live == one)
    assert await prompt(b, "mood") == "Mood?\n\nhi ="
    assert (await b.client.delete("/icl/templates/mood")).status_code == 204
    await until(lambda: names[0].store.record("mood") is None)


async def test_what_is_converted_travels_as_it_was_sent(a: Served, b: Served) -> None:
    of_tasks = as_files(multitask_config(2, HIDDEN_SIZE, 3), multitask_tensors(2, HIDDEN_SIZE, 3))
    await put(a, "tasks", of_tasks)
    await put(a, "task", of_tasks, task="1")
    noted = as_files(
        lora_config(4, target_modules=["q_proj", "v_proj", "c_attn"]),
        lora_tensors(ARCHITECTURE.modules, 4),
    )
    await put(a, "noted", noted)
    foreign = as_files(
        lora_config(4, base_model="another/model"), lora_tensors(ARCHITECTURE.modules, 4)
    )
    await put(a, "forced", foreign, force="true")
    for name in ("tasks", "task", "noted", "forced"):
        await until(lambda name=name: live(b, name) is not None)  # type: ignore[misc]
        assert await shown(a, name) == await shown(b, name)
        stores = [each.app.state.adapters.names.store for each in (a, b)]
        folders = [store.folder(live(a, name)) for store in stores]
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


# Who is there, and how far.


async def test_waiting_for_all(a: Served, b: Served) -> None:
    answer = await put(a, "mine", files(0), "?wait=all")
    assert live(b, "mine") == answer["live"]
    assert [each["serves"] for each in answer["replicas"]] == [True, True]
    ids = [each.app.state.follower.replicas.id for each in (a, b)]
    assert [each["id"] for each in answer["replicas"]] == ids
    await put(b, "mine", files(1))
    answer = (await b.client.post("/adapters/mine/rollback?wait=all")).json()
    assert live(a, "mine") == answer["live"]
    assert [each["serves"] for each in answer["replicas"]] == [True, True]
    body = TEMPLATE | {"instruction": "Mood?"}
    answer = (await a.client.put("/icl/templates/mood?wait=all", json=body)).json()
    assert [each["serves"] for each in answer["replicas"]] == [True, True]
    assert b.app.state.templates.names.get("mood").live == answer["live"]


async def test_who_cannot_serve_it_says_why(a: Served, url: str) -> None:
    async with replica(url, max_lora_rank=2) as b:
        answer = await put(a, "mine", files(0), "?wait=all")
        assert [each["serves"] for each in answer["replicas"]] == [True, False]
        assert "--max-lora-rank" in answer["replicas"][1]["why"]
        origin = (await b.get("/adapters")).json()["origin"]
        assert "--max-lora-rank" in origin["behind"]["mine"]
        assert await b.metric("softserve_origin_names_behind") == 1
        assert error_of(await b.generate(adapter="mine"))[:2] == (422, "adapter_rejected")


async def test_there_is_nobody_to_wait_for(served: Served) -> None:
    sent = [("file", each) for each in files()]
    answer = await served.client.put("/adapters/mine?wait=all", files=sent)
    assert error_of(answer) == (422, "invalid_request", "wait")
    answer = await served.client.put("/adapters/mine?wait=none", files=sent)
    assert error_of(answer)[0] == 422


async def test_how_far_a_replica_is_is_shown(a: Served, b: Served) -> None:
    before = (await a.get("/adapters")).json()["origin"]
    assert (before["reachable"], before["publishes"], before["behind"]) == (True, True, {})
    await put(a, "mine", files(), "?wait=all")
    for served in (a, b):
        origin = (await served.get("/adapters")).json()["origin"]
        assert origin["generation"] == before["generation"] + 1
        assert origin["replica"] == served.app.state.follower.replicas.id
        assert await served.metric("softserve_origin_generation") == origin["generation"]
        assert await served.metric("softserve_origin_reachable") == 1
        assert await served.metric("softserve_origin_publishes") == origin["publishes"]
    assert not (await b.get("/adapters")).json()["origin"]["publishes"]


# Watched folders.


async def test_the_watched_folders_of_one_replica_are_those_of_all(
    url: str, tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        write_lora(folder / "watched", ARCHITECTURE.modules, seed=seed)
    async with replica(url, adapter_dir=folders[0]) as a:
        first = live(a, "watched")
        assert first is not None
        async with replica(url, adapter_dir=folders[1]) as b:
            assert live(b, "watched") == first
            # What an operator did since stays, on a replica that comes anew too.
            uploaded = (await put(b, "watched", files(5), "?wait=all"))["live"]
            async with replica(url, adapter_dir=folders[0]) as c:
                assert live(c, "watched") == uploaded
            write_lora(folders[0] / "another", ARCHITECTURE.modules, seed=6)
            await until(lambda: live(b, "another") is not None)
            assert live(a, "another") == live(b, "another")
    # It is the first one now: what its folder has is for all, what it never had stays.
    async with replica(url, adapter_dir=folders[1]) as b:
        assert live(b, "watched") not in {None, first, uploaded}
        assert live(b, "another") is not None
        shutil.rmtree(folders[1] / "watched")
        await until(lambda: live(b, "watched") is None)


# An origin that fails.


@pytest.fixture
def way(s3: int) -> Iterator[Way]:
    with way_to(s3) as way, asking(way.port):
        yield way


@pytest.fixture
def far_url() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


async def test_out_of_reach_and_back(way: Way, far_url: str) -> None:
    async with replica(far_url) as a, replica(far_url) as b:
        one = (await put(a, "mine", files(0), "?wait=all"))["live"]
        await put_template(a, "mood", "Mood?")
        way.close()
        await until(lambda: not b.app.state.follower.origin.is_reachable)
        for served in (a, b):
            sent = [("file", each) for each in files(1)]
            refused: list[httpx.Response] = [
                await served.client.put("/adapters/mine", files=sent),
                await served.client.post("/adapters/mine/rollback"),
                await served.client.delete("/adapters/mine"),
                await served.client.put("/icl/templates/mood", json=TEMPLATE),
            ]
            for answer in refused:
                assert error_of(answer) == (503, "origin_unavailable", None)
                assert "nothing has changed" in answer.json()["error"]["message"]
                assert answer.headers["retry-after"] == "5"
            assert (await served.get("/health/ready")).status_code == 200
            assert await text(served, "mine") == f"{adapter_mark(one)}hi"
            assert error_of(await served.generate(adapter="nothing"))[:2] == (
                404,
                "adapter_not_found",
            )
        assert not (await b.get("/adapters")).json()["origin"]["reachable"]
        assert await b.metric("softserve_origin_reachable") == 0
        way.reopen()
        await until(lambda: a.app.state.follower.origin.is_reachable)
        two = (await put(a, "mine", files(1)))["live"]
        await until(lambda: live(b, "mine") == two)


async def test_a_start_out_of_reach(way: Way, far_url: str, tmp_path: Path) -> None:
    own = {"adapter_store": tmp_path / "store"}
    async with replica(far_url, **own) as a:
        one = (await put(a, "mine", files(0)))["live"]
        await put(a, "mine", files(1))
        await a.client.post("/adapters/mine/rollback")
    way.close()
    async with replica(far_url, **own) as a:
        assert await text(a, "mine") == f"{adapter_mark(one)}hi"
        way.reopen()
        await until(lambda: a.app.state.follower.origin.is_reachable)
        assert (await put(a, "mine", files(2)))["live"] == live(a, "mine")


async def test_a_slow_origin(way: Way, far_url: str) -> None:
    way.delay_seconds = 0.1
    async with replica(far_url) as a, replica(far_url) as b:
        answer = await put(a, "mine", files(0), "?wait=all")
        assert [each["serves"] for each in answer["replicas"]] == [True, True]
        assert live(b, "mine") == answer["live"]


async def test_answers_that_get_lost(way: Way, far_url: str) -> None:
    """Whether a change was made or not, the replicas agree, and nothing is made twice."""
    async with replica(far_url) as a, replica(far_url) as b:
        digests = [(await put(a, "mine", files(seed)))["live"] for seed in range(4)]
        way.loses_answers = True
        changing = asyncio.create_task(a.client.post("/adapters/mine/rollback"))
        await asyncio.sleep(1)
        way.reopen()
        answer = await changing
        expected = digests[2] if answer.status_code == 200 else live(a, "mine")
        assert answer.status_code == 200 or error_of(answer)[1] == "origin_unavailable"
        assert expected in digests[2:]
        await until(lambda: live(a, "mine") == live(b, "mine") == expected)


def damage(folder: Path) -> None:
    """Change the last byte of the only adapter in an origin."""
    (weights,) = folder.glob("*/adapters/*/adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


async def test_a_damaged_object_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "origin"
    folder.mkdir()
    url = f"file://{folder}"
    async with replica(url) as a:
        digest = (await put(a, "mine", files(0)))["live"]
        damage(folder)
        async with replica(url) as b:
            answer = await b.generate(adapter="mine")
            assert error_of(answer)[:2] == (503, "origin_unavailable")
            assert "damaged" in answer.json()["error"]["message"]
            await put(a, "mine", files(0))
            await until(lambda: live(b, "mine") == digest)
            assert await text(b, "mine") == f"{adapter_mark(digest)}hi"


# Under load.


async def test_a_storm_of_swaps_under_load(a: Served, b: Served) -> None:
    """Both are asked and changed all the time: each answer is right for the version it names."""
    digests = [await add_lora(a, "mine", seed) for seed in range(3)]
    await until(lambda: (live(b, "mine") or "").startswith(digests[-1]))
    is_over = False

    async def ask(served: Served) -> int:
        num_asked = 0
        while not is_over:
            answer = await served.generate("hi", adapter="mine")
            assert answer.status_code == 200, answer.text
            version = answer.json()["adapter"]["version"]
            assert answer.json()["completions"][0]["text"] == f"{adapter_mark(version)}hi"
            num_asked += 1
        return num_asked

    async def change(served: Served, offset: int) -> None:
        for number in range(6):
            await put(served, "mine", files((number + offset) % 4))
            answer = await served.client.post("/adapters/mine/rollback")
            assert answer.status_code in {200, 409}, answer.text

    asking = [asyncio.create_task(ask(each)) for each in (a, b, a, b)]
    await asyncio.gather(change(a, 0), change(b, 2))
    is_over = True
    assert min(await asyncio.gather(*asking)) > 0
    await until(lambda: live(a, "mine") == live(b, "mine"))
    assert await shown(a, "mine") == await shown(b, "mine")


async def test_contended_changes(a: Served, b: Served) -> None:
    """Of many names, on both at once: none is lost."""

    async def change(served: Served, own: str) -> None:
        for number in range(10):
            await put_template(served, f"{own}-{number}", f"Mood {number}?")
            await put_template(served, "shared", f"{own} {number}?")

    await asyncio.gather(change(a, "a"), change(b, "b"))
    names = [each.app.state.templates.names for each in (a, b)]
    await until(lambda: names[0].store.records == names[1].store.records)
    assert len(names[0].list()) == 21
    assert names[0].get("shared").live is not None
