"""`GET /usage`: what was used with each key, of each adapter."""

from pathlib import Path
from typing import Any

import pytest
import structlog

from app.access.usage import FILE_NAME
from tests.adapter_files import write_lora
from tests.api.support import Served, serving, until
from tests.fake_engine import ARCHITECTURE
from tests.key_files import new_key


async def usage(served: Served, **options: Any) -> dict[tuple[str, str | None], tuple[int, ...]]:
    """Requests, prompt, cached and completion tokens, by key and adapter."""
    report = (await served.client.get("/usage", **options)).json()
    counted = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    return {
        (row["key"], row["adapter"]): tuple(row[each] for each in counted)
        for row in report["usage"]
    }


async def test_each_sees_its_own_and_an_operator_all(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    a, b = new_key(path, "a", "user"), new_key(path, "b", "user")
    operator = new_key(path, "watch", "operator")
    write_lora(tmp_path / "adapters" / "task", ARCHITECTURE.modules)
    async with serving(keys_file=path, adapter_dir=tmp_path / "adapters") as served:
        used = []
        for fields in ({"prompt": "hello"}, {"prompt": ["a", "bc"]}, {"adapter": "task"}):
            body = {"prompt": "x", "max_new_tokens": 3} | fields
            answer = await served.client.post("/generate", json=body, headers=a)
            used.append(answer.json()["usage"])
        await served.client.post("/generate", json={"prompt": "x"}, headers=b)
        refused = await served.client.post("/generate", json={"prompt": ""}, headers=b)
        assert refused.status_code == 422

        seen = await usage(served, headers=a)
        assert seen == {
            ("a", None): (
                2,
                used[0]["prompt_tokens"] + used[1]["prompt_tokens"],
                used[0]["cached_tokens"] + used[1]["cached_tokens"],
                used[0]["completion_tokens"] + used[1]["completion_tokens"],
            ),
            ("a", "task"): (
                1,
                used[2]["prompt_tokens"],
                used[2]["cached_tokens"],
                used[2]["completion_tokens"],
            ),
        }
        everybodys = await usage(served, headers=operator)
        assert everybodys.keys() == {("a", None), ("a", "task"), ("b", None)}
        assert everybodys["b", None][0] == 1


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    store = tmp_path / "store"
    async with serving(adapter_store=store) as served:
        await served.generate()
        before = (await served.get("/usage")).json()
    async with serving(adapter_store=store) as served:
        assert (await served.get("/usage")).json() == before
        await served.generate()
        assert (await usage(served))["anonymous", None][0] == 2


async def test_it_is_saved_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.access.usage.SAVE_INTERVAL_SECONDS", 0.01)
    store = tmp_path / "store"
    async with serving(adapter_store=store) as served:
        await served.generate()
        await until((store / FILE_NAME).exists)


async def test_a_damaged_file_is_put_aside(
    tmp_path: Path, events: list[structlog.typing.EventDict]
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / FILE_NAME).write_text('{"since": "2')
    async with serving(adapter_store=store) as served:
        assert (await usage(served)) == {}
    assert (store / "usage.damaged").exists()
    assert [event for event in events if "the usage file is damaged" in event["event"]]


async def test_a_disk_that_is_full_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: list[structlog.typing.EventDict]
) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.access.usage.SAVE_INTERVAL_SECONDS", 0.01)
    store = tmp_path / "store"
    with monkeypatch.context() as while_full:
        while_full.setattr("app.access.usage.replace_file", full)
        async with serving(adapter_store=store) as served:
            await served.generate()
            await until(lambda: any("cannot be saved" in event["event"] for event in events))
            while_full.undo()
            await until((store / FILE_NAME).exists)
            assert (await served.generate()).is_success
    assert len([event for event in events if "cannot be saved" in event["event"]]) == 1
