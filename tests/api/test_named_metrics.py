"""GET /metrics by adapter, soft prompt, template and key; what is loaded, swapped, turned away."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.access.caller import ANONYMOUS
from app.engine.generation import GenerationRequest, resolve_sampling
from app.serving.prompts import prompt_of
from tests import exposition
from tests.api.support import (
    Served,
    add_lora,
    add_soft_prompt,
    serving,
    starting,
    until,
    until_failed,
)
from tests.deployment import matchers_of, queries
from tests.exposition import Series
from tests.fake_engine import FakeEngine
from tests.key_files import Headers, bearer, new_key

TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
}


async def series(served: Served, metric: str) -> Series:
    """Those that are not zero."""
    found = exposition.series((await served.get("/metrics")).text, metric)
    return {labels: value for labels, value in found.items() if value}


async def by_name(served: Served, metric: str) -> Series:
    """Those of adapters, soft prompts and templates."""
    found = await series(served, f"softserve_named_{metric}")
    return {labels: value for labels, value in found.items() if labels[0] != "key"}


async def test_what_a_request_uses_is_measured_by_name(served: Served) -> None:
    version = await add_lora(served, "task")
    await served.generate(["ab", "c"], adapter="task", max_new_tokens=3, ignore_eos=True)
    task = ("adapter", "task", version)
    assert await by_name(served, "requests_total") == {(*task, "success"): 1}
    assert await by_name(served, "prompt_tokens_total") == {task: 3}
    assert await by_name(served, "completion_tokens_total") == {task: 6}
    assert await by_name(served, "time_to_first_token_seconds_count") == {task: 1}
    assert await by_name(served, "inter_token_latency_seconds_count") == {task: 4}
    assert await by_name(served, "queue_time_seconds_count") == {task: 2}
    assert (await series(served, "softserve_completion_tokens_total"))[()] == 6


async def test_a_request_counts_once_for_each_name(served: Served) -> None:
    task, tone = await add_lora(served, "task"), await add_soft_prompt(served, "tone")
    response = await served.client.put("/icl/templates/mood", json=TEMPLATE)
    assert response.status_code == 200, response.text
    template = response.json()["live"][:12]
    body = {"template": "mood", "inputs": {"text": "a"}, "adapter": "task", "soft_prompt": "tone"}
    assert (await served.client.post("/icl/generate", json=body)).status_code == 200
    assert await by_name(served, "requests_total") == {
        ("adapter", "task", task, "success"): 1,
        ("soft_prompt", "tone", tone, "success"): 1,
        ("template", "mood", template, "success"): 1,
    }


async def test_a_template_that_comes_with_the_request_has_no_name(served: Served) -> None:
    body = {"template": TEMPLATE, "inputs": {"text": "a"}}
    assert (await served.client.post("/icl/generate", json=body)).status_code == 200
    assert await by_name(served, "requests_total") == {}


async def test_every_request_of_a_key_counts(served: Served) -> None:
    await served.generate("a")
    await served.generate("a", n=0)
    await served.generate("a", adapter="nobody")
    keys = await series(served, "softserve_named_requests_total")
    assert keys == {
        ("key", "anonymous", "", "success"): 1,
        ("key", "anonymous", "", "invalid"): 2,
    }


async def requests_by_key(served: Served, headers: Headers) -> dict[tuple[str, str], float]:
    """By the key's name and the outcome; `headers` are those of who asks for the metrics."""
    text = (await served.client.get("/metrics", headers=headers)).text
    found = exposition.series(text, "softserve_named_requests_total")
    return {(name, outcome): each for (_, name, _, outcome), each in found.items() if name}


async def test_a_key_over_its_quota_is_refused(tmp_path: Path, engine: FakeEngine) -> None:
    keys = tmp_path / "keys.json"
    watch = new_key(keys, "watch", "operator")
    bot = new_key(keys, "bot", max_requests_in_flight=1)
    async with serving(engine, keys_file=keys) as served:
        engine.hold()
        first = asyncio.create_task(_generate(served, bot))
        await until(lambda: len(engine.open) == 1)
        assert (await _generate(served, bot)).status_code == 429
        engine.release()
        await first
        counted = await requests_by_key(served, watch)
        assert counted == {("bot", "success"): 1, ("bot", "refused"): 1}
        reasons = await served.client.get("/metrics", headers=watch)
        rejections = exposition.series(reasons.text, "softserve_rejections_total")
        assert rejections["quota_exceeded",] == 1


async def test_a_revoked_key_leaves_no_series(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    root = new_key(keys, "root", "admin", "operator")
    bot = new_key(keys, "bot")
    async with serving(keys_file=keys) as served:
        assert (await _generate(served, bot)).status_code == 200
        assert ("bot", "success") in await requests_by_key(served, root)
        assert (await served.client.delete("/keys/bot", headers=root)).is_success
        assert {name for name, _ in await requests_by_key(served, root)} == {"root"}


async def test_a_secret_that_is_no_key_has_no_name(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    watch = new_key(keys, "watch", "operator")
    async with serving(keys_file=keys) as served:
        assert (await _generate(served, bearer("swordfish"))).status_code == 401
        assert await requests_by_key(served, watch) == {("anonymous", "invalid"): 1}


async def _generate(served: Served, headers: Headers) -> httpx.Response:
    return await served.client.post("/generate", json={"prompt": "a"}, headers=headers)


async def test_a_failed_generation_counts_for_its_adapter(
    served: Served, engine: FakeEngine
) -> None:
    version = await add_lora(served, "task")
    engine.fail(RuntimeError("no reason"), at_chunk=1)
    await served.generate("ab", adapter="task")
    await served.generate("ab", adapter="task", stream=True)
    assert await by_name(served, "requests_total") == {("adapter", "task", version, "failed"): 2}


async def test_requests_in_flight(served: Served, engine: FakeEngine) -> None:
    task = ("adapter", "task", await add_lora(served, "task"))
    tone = ("soft_prompt", "tone", await add_soft_prompt(served, "tone"))
    engine.hold()
    asked = [
        asyncio.create_task(served.generate("a", **fields))
        for fields in ({}, {"adapter": "task"}, {"adapter": "task", "soft_prompt": "tone"})
    ]
    await until(lambda: len(engine.open) == 3)
    waiting = {(*task, "waiting"): 2.0, (*tone, "waiting"): 1.0}
    assert await by_name(served, "requests_in_flight") == waiting

    engine.release()
    await asyncio.gather(*asked)
    assert await by_name(served, "requests_in_flight") == {}


async def test_a_request_with_tokens_counts_as_running(served: Served) -> None:
    version = await add_lora(served, "task")
    request = GenerationRequest("id", 1, resolve_sampling(), adapter="task")
    service = served.app.state.service
    async with service.admit(ANONYMOUS, request, ["ab"]) as admitted:
        prompts = [prompt_of(0, [1, 2], admitted.adapters)]
        async with aclosing(service.complete(request, prompts, admitted)) as chunks:
            await anext(chunks)
            running = {("adapter", "task", version, "running"): 1.0}
            assert await by_name(served, "requests_in_flight") == running
            assert await lora_requests_info(served) == [("8", "task", "")]


async def test_a_removed_adapter_leaves_no_series(served: Served) -> None:
    await add_lora(served, "task")
    await served.generate(adapter="task")
    assert "task" in (await served.get("/metrics")).text

    await served.client.delete("/adapters/task")

    assert "task" not in (await served.get("/metrics")).text


async def test_a_version_that_is_not_kept_leaves_no_series() -> None:
    async with serving(adapter_retention=2) as served:
        versions = []
        for seed in range(4):
            versions.append(await add_lora(served, "task", seed))
            await served.generate(adapter="task")
        counted = await by_name(served, "requests_total")
    assert {labels[2] for labels in counted} == set(versions[-2:])


# Routers read it.


async def lora_requests_info(served: Served) -> list[tuple[str, ...]]:
    """The LoRAs that fit a batch, that run, and that wait."""
    return list(await series(served, "vllm:lora_requests_info"))


async def test_routers_see_the_names_of_loras_in_one_series(
    served: Served, engine: FakeEngine
) -> None:
    for name in ("tone", "task"):
        await add_lora(served, name)
    await add_soft_prompt(served, "soft")
    assert await lora_requests_info(served) == [("8", "", "")]
    engine.hold()
    asked = [
        asyncio.create_task(served.generate("a", **fields))
        for fields in ({"adapter": "tone"}, {"adapter": "task"}, {"soft_prompt": "soft"})
    ]
    await until(lambda: len(engine.open) == 3)
    assert await lora_requests_info(served) == [("8", "", "task,tone")]
    engine.release()
    await asyncio.gather(*asked)


async def test_without_loras_routers_see_none() -> None:
    async with serving(max_loras=0) as served:
        assert await lora_requests_info(served) == []


# What is loaded, and what has changed.


async def test_what_is_loaded_has_a_series_each() -> None:
    async with serving(max_loaded_adapters=1, max_loras=1) as served:
        one = await add_lora(served, "one", seed=1)
        two = await add_lora(served, "two", seed=2)
        tone = await add_soft_prompt(served, "tone")
        assert await series(served, "softserve_adapter_loaded") == {
            ("adapter", "two", two): 1,
            ("soft_prompt", "tone", tone): 1,
        }
        await served.generate(adapter="one")
        assert ("adapter", "one", one) in await series(served, "softserve_adapter_loaded")
        assert await series(served, "softserve_adapter_evictions_total") == {("adapter",): 2}
        assert await series(served, "softserve_adapter_load_seconds_count") == {
            ("adapter",): 3,
            ("soft_prompt",): 1,
        }
        assert await series(served, "softserve_adapter_load_failures_total") == {}


async def test_a_load_that_fails_is_counted(engine: FakeEngine) -> None:
    async with serving(engine, max_loaded_adapters=1, max_loras=1) as served:
        await add_lora(served, "one", seed=1)
        digest = next(iter(engine.loaded))
        await add_lora(served, "two", seed=2)
        engine.reject(digest, "no reason")
        assert (await served.generate(adapter="one")).status_code == 422
        assert await series(served, "softserve_adapter_load_failures_total") == {("adapter",): 1}


async def test_swaps(served: Served) -> None:
    assert await series(served, "softserve_swaps_total") == {}
    await add_lora(served, "task", seed=1)
    await add_lora(served, "task", seed=1)
    await add_lora(served, "task", seed=2)
    await served.client.post("/adapters/task/rollback")
    await served.client.delete("/adapters/task")
    await served.client.put("/icl/templates/mood", json=TEMPLATE)
    assert await series(served, "softserve_swaps_total") == {("adapters",): 3, ("templates",): 1}


# States and refusals.


async def test_the_states(engine: FakeEngine) -> None:
    engine.hold_start()
    async with starting(engine) as served:
        assert await series(served, "softserve_state") == {("starting",): 1}
        engine.release_start()
        await until(lambda: served.admission.refusal is None)
        assert await series(served, "softserve_state") == {("open",): 1}
        await served.lifecycle.drain(0)
        assert await series(served, "softserve_state") == {("draining",): 1}


async def test_the_state_of_a_dead_engine(served: Served, engine: FakeEngine) -> None:
    engine.die()
    await until_failed(served)
    assert await series(served, "softserve_state") == {("dead",): 1}


async def test_an_alert_sees_the_first_of_a_reason(served: Served) -> None:
    text = (await served.get("/metrics")).text
    for query in queries():
        for metric, label, value in matchers_of(query):
            if label == "reason":
                assert exposition.series(text, metric)[value,] == 0
    failures = exposition.series(text, "softserve_adapter_load_failures_total")
    assert failures == {("adapter",): 0, ("soft_prompt",): 0}


async def test_what_is_turned_away_is_counted_by_reason(engine: FakeEngine) -> None:
    engine.hold_start()
    async with starting(engine, admin_key="secret") as served:
        await served.generate("a")
        await served.client.delete("/adapters/task")
        engine.release_start()
        await until(lambda: served.admission.refusal is None)
        await served.post_bytes("/generate", b" " * (1 << 21))
        await served.generate("a", n=0)
        await served.get("/nothing")
        assert await series(served, "softserve_rejections_total") == {
            ("engine_starting",): 1,
            ("key_required",): 1,
            ("body_too_large",): 1,
        }


@pytest.mark.parametrize("name", ["task", "nobody"])
async def test_the_log_tells_what_a_request_used(
    served: Served, events: list[dict[str, Any]], name: str
) -> None:
    version = await add_lora(served, "task")
    events.clear()
    await served.generate("a", adapter=name)
    ended = next(event for event in events if event["event"] == "request ended")
    assert ended["key"] == "anonymous"
    if name == "task":
        assert ended["adapter"] == f"task@{version}"
        assert "error" not in ended
    else:
        assert ended["error"] == "adapter_not_found"
        assert "adapter" not in ended
