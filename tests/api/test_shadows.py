"""Copies of requests on a second version: made, compared, counted, and never in anybody's way."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from structlog.typing import EventDict

from app.serving.shadowing import agreement
from tests.api.support import Served, error_of, serving, until
from tests.api.test_adapters import added, lora, message_of
from tests.api.test_icl import TEMPLATE
from tests.api.test_splits import (
    NAME,
    PATH,
    TEMPLATE_PATH,
    post,
    split,
    two_templates,
    two_versions,
)
from tests.fake_engine import FakeEngine, adapter_mark

# Tokens of a completion on the fake engine: a mark, the prompt, and end-of-sequence.
NUM_TOKENS = len(adapter_mark("0" * 64) + "hello") + 1


async def shadowed(served: Served, percent: float = 100) -> tuple[str, str]:
    """The live version, and its shadow."""
    live, shadow = await two_versions(served)
    response = await post(served, "shadow", version=shadow[:6], percent=percent)
    assert response.status_code == 200, response.text
    return live, shadow


async def results(served: Served, path: str = PATH) -> dict[str, Any]:
    results: dict[str, Any] = (await served.get(path)).json()["shadow"]["results"]
    return results


def tally_of(served: Served) -> Any:
    return served.app.state.adapters.names.tally(NAME)


async def until_counted(served: Served, outcome: str, number: int) -> None:
    await until(lambda: getattr(tally_of(served), outcome) == number)


async def unload(served: Served, engine: FakeEngine, digest: str) -> None:
    """As if others had needed its room."""
    served.app.state.adapters._residency.retire(digest)
    await until(lambda: digest not in engine.loaded)


async def test_a_copy_runs_and_is_counted(served: Served, engine: FakeEngine) -> None:
    live, shadow = await shadowed(served)
    answer = (await served.generate(adapter=NAME)).json()
    await until_counted(served, "completed", 1)
    counted = await results(served)

    assert answer["adapter"]["version"] == live
    assert answer["completions"][0]["text"] == f"{adapter_mark(live)}hello"
    assert counted.pop("live_seconds") > 0
    assert counted.pop("shadow_seconds") > 0
    # Of the marks, the first character is the same.
    alike = agreement(adapter_mark(live).encode(), adapter_mark(shadow).encode())
    alike *= len(adapter_mark(live)) / NUM_TOKENS
    assert counted == {
        "completed": 1,
        "failed": 0,
        "skipped": 0,
        "live_tokens": NUM_TOKENS,
        "shadow_tokens": NUM_TOKENS,
        "compared": 1,
        "equal": 0,
        "agreement": pytest.approx(alike),
    }
    assert len(engine.finished) == 2


async def test_a_shadow_is_shown(served: Served) -> None:
    _, shadow = await shadowed(served, percent=0.5)
    shown = (await served.get(PATH)).json()["shadow"]
    assert shown.pop("since").endswith("Z")
    assert shown == {
        "version": shadow,
        "percent": 0.5,
        "results": {
            "completed": 0,
            "failed": 0,
            "skipped": 0,
            "live_seconds": 0.0,
            "shadow_seconds": 0.0,
            "live_tokens": 0,
            "shadow_tokens": 0,
            "compared": 0,
            "equal": 0,
            "agreement": None,
        },
    }


async def test_an_equal_copy(served: Served, engine: FakeEngine) -> None:
    live, shadow = await shadowed(served)
    engine.without_effect |= {live, shadow}
    await served.generate(adapter=NAME)
    await until_counted(served, "completed", 1)
    counted = await results(served)
    assert (counted["compared"], counted["equal"], counted["agreement"]) == (1, 1, 1.0)


async def test_every_completion_is_compared(served: Served) -> None:
    await shadowed(served)
    await served.generate(["one", "two"], adapter=NAME)
    await until_counted(served, "completed", 1)
    assert (await results(served))["compared"] == 2


async def test_random_completions_are_not_compared(served: Served) -> None:
    await shadowed(served)
    await served.generate(adapter=NAME, temperature=1.0, n=2)
    await until_counted(served, "completed", 1)
    counted = await results(served)
    assert (counted["compared"], counted["agreement"]) == (0, None)
    assert counted["shadow_tokens"] > 0


async def test_a_stream_is_copied_too(served: Served) -> None:
    await shadowed(served)
    assert (await served.generate(adapter=NAME, stream=True)).status_code == 200
    await until_counted(served, "completed", 1)


async def test_what_has_no_copy(served: Served, engine: FakeEngine) -> None:
    """Another adapter, the base model, the shadow itself, an inspection, and what fails."""
    _, shadow = await shadowed(served)
    await added(served, "other", lora(5))
    await served.generate(adapter="other")
    await served.generate()
    await served.generate(adapter=f"{NAME}@{shadow}")
    await served.inspect(adapter=NAME)
    assert (await served.generate("x" * 300, adapter=NAME)).status_code == 422
    await served.generate(adapter=NAME)
    await until_counted(served, "completed", 1)
    counted = await results(served)
    assert (counted["failed"], counted["skipped"]) == (0, 0)


async def test_copies_are_no_requests(served: Served) -> None:
    await shadowed(served)
    await served.generate(adapter=NAME)
    await until_counted(served, "completed", 1)
    versions = (await served.get(PATH)).json()["versions"]
    assert [version["requests"] for version in versions] == [0, 1]
    assert await served.metric("softserve_completion_tokens_total") == NUM_TOKENS
    assert await served.requests("generate", "success") == 1


async def test_the_live_answer_does_not_wait_for_the_copy(
    served: Served, engine: FakeEngine
) -> None:
    await shadowed(served)
    asked = asyncio.create_task(served.generate(adapter=NAME))
    await until(lambda: len(engine.finished) == 1)
    engine.hold()
    assert (await asked).status_code == 200
    await until(lambda: len(engine.open) == 1)
    assert served.admission.sequences_in_flight == 0
    engine.release()
    await until_counted(served, "completed", 1)


async def test_a_failing_copy_is_counted_and_told(
    served: Served, engine: FakeEngine, events: list[EventDict]
) -> None:
    _, shadow = await shadowed(served)
    engine.reject(shadow, "it does not fit")
    await unload(served, engine, shadow)
    assert (await served.generate(adapter=NAME)).status_code == 200
    await until_counted(served, "failed", 1)
    (told,) = [each for each in events if each["event"] == "a request fails on its shadow"]
    assert (told["name"], told["version"], told["why"]) == (NAME, shadow, "it does not fit")


async def test_a_defect_in_a_copy_is_counted_and_logged(
    served: Served, engine: FakeEngine, events: list[EventDict]
) -> None:
    await shadowed(served)
    asked = asyncio.create_task(served.generate(adapter=NAME))
    await until(lambda: len(engine.finished) == 1)
    engine.fail(RuntimeError("a defect"))
    assert (await asked).status_code == 200
    await until_counted(served, "failed", 1)
    (told,) = [each for each in events if each["event"] == "a request fails on its shadow"]
    assert told["exc_info"]


async def test_a_busy_server_skips_copies(engine: FakeEngine) -> None:
    async with serving(engine, max_running_sequences=8) as served:
        await shadowed(served)
        assert (await served.generate(["a", "b", "c"], adapter=NAME)).status_code == 200
        await until_counted(served, "skipped", 1)
        assert tally_of(served).completed == 0


async def test_copies_make_a_server_busy_for_copies(engine: FakeEngine) -> None:
    """Two may run of eight places, and wait for their adapters."""
    async with serving(engine, max_running_sequences=8) as served:
        _, shadow = await shadowed(served)
        await unload(served, engine, shadow)
        engine.hold_loads()
        for _ in range(3):
            await served.generate(adapter=NAME)
        await until_counted(served, "skipped", 1)
        engine.release_loads()
        await until_counted(served, "completed", 2)


async def test_a_copy_unloads_nothing(engine: FakeEngine) -> None:
    async with serving(engine, max_loaded_adapters=1) as served:
        live, _ = await shadowed(served)
        await served.generate(adapter=NAME)
        await until_counted(served, "skipped", 1)
        assert set(engine.loaded) == {live}


async def test_a_copy_makes_room_for_a_request(engine: FakeEngine) -> None:
    async with serving(engine, max_loaded_adapters=2) as served:
        await added(served, "other", lora(5))
        live, shadow = await shadowed(served)
        assert set(engine.loaded) == {live, shadow}
        asked = asyncio.create_task(served.generate(adapter=NAME))
        await until(lambda: len(engine.finished) == 1)
        engine.hold()
        await asked
        await until(lambda: len(engine.open) == 1)
        # Both places are held: by the copy, and by this one.
        held = asyncio.create_task(served.generate(adapter=NAME))
        await until(lambda: len(engine.open) == 2)
        waiting = asyncio.create_task(served.generate(adapter="other"))
        await until(lambda: served.app.state.adapters.is_short_of_room)
        engine.release()
        for each in (held, waiting):
            assert (await each).status_code == 200
        assert tally_of(served).skipped >= 1


async def end_with_delete(served: Served) -> httpx.Response:
    return await served.client.delete(f"{PATH}/shadow")


async def end_with_promote(served: Served) -> httpx.Response:
    return await post(served, "promote")


async def end_with_rollback(served: Served) -> httpx.Response:
    return await post(served, "rollback")


async def end_with_another_version(served: Served) -> httpx.Response:
    files = [("file", file) for file in lora(9)]
    return await served.client.put(PATH, files=files)


@pytest.mark.parametrize(
    "end", [end_with_delete, end_with_promote, end_with_rollback, end_with_another_version]
)
async def test_how_it_ends(
    served: Served, engine: FakeEngine, end: Callable[[Served], Any]
) -> None:
    await added(served, NAME, lora(0))
    await shadowed(served)
    await served.generate(adapter=NAME)
    await until_counted(served, "completed", 1)
    num_finished = len(engine.finished)
    assert (await end(served)).json()["shadow"] is None
    await served.generate(adapter=NAME)
    await asyncio.sleep(0.01)
    assert len(engine.finished) == num_finished + 1
    assert "softserve_shadow_requests_total{" not in (await served.get("/metrics")).text


async def test_a_removal_does_not_wait_for_a_copy_to_end(
    served: Served, engine: FakeEngine
) -> None:
    await shadowed(served)
    asked = asyncio.create_task(served.generate(adapter=NAME, max_new_tokens=20, ignore_eos=True))
    await until(lambda: len(engine.finished) == 1)
    engine.hold()
    await asked
    await until(lambda: len(engine.open) == 1)
    removing = asyncio.create_task(served.client.delete(PATH))
    await until(lambda: not served.app.state.adapters.names.list())
    engine.release()
    assert (await removing).status_code == 204
    assert len(engine.left_early) == 1


async def test_a_copy_ends_with_the_server(engine: FakeEngine) -> None:
    async with serving(engine) as served:
        await shadowed(served)
        asked = asyncio.create_task(served.generate(adapter=NAME))
        await until(lambda: len(engine.finished) == 1)
        engine.hold()
        await asked
        await until(lambda: len(engine.open) == 1)
        await served.lifecycle.drain(0)
    assert engine.open == []
    assert engine.num_stops == 1


async def test_it_begins_anew(served: Served) -> None:
    _, shadow = await shadowed(served)
    await served.generate(adapter=NAME)
    await until_counted(served, "completed", 1)
    await post(served, "shadow", version=shadow, percent=50)
    assert (await results(served))["completed"] == 0


async def test_beside_a_split(served: Served) -> None:
    """What the live version answers is copied, and nothing else."""
    live, shadow = await shadowed(served)
    await split(served, {live: 1, shadow: 1})
    answers = [(await served.generate(adapter=NAME)).json() for _ in range(32)]
    num_live = sum(each["adapter"]["version"] == live for each in answers)
    await until_counted(served, "completed", num_live)
    assert 0 < num_live < 32


async def test_it_survives_a_restart(tmp_path: Any) -> None:
    async with serving(adapter_store=tmp_path / "store") as served:
        await shadowed(served)
        before = (await served.get(PATH)).json()["shadow"]
    async with serving(adapter_store=tmp_path / "store") as served:
        assert (await served.get(PATH)).json()["shadow"] == before
        await served.generate(adapter=NAME)
        await until_counted(served, "completed", 1)


async def test_the_metrics(served: Served) -> None:
    _, shadow = await shadowed(served)
    await served.generate(adapter=NAME)
    await until_counted(served, "completed", 1)
    kind, version = f'kind="adapter",name="{NAME}"', f'version="{shadow[:12]}"'
    expected = {
        f'requests_total{{{kind},outcome="completed",{version}}}': 1,
        f'requests_total{{{kind},outcome="failed",{version}}}': 0,
        f'tokens_total{{{kind},side="shadow",{version}}}': NUM_TOKENS,
        f'compared_total{{{kind},text="equal",{version}}}': 0,
        f'compared_total{{{kind},text="different",{version}}}': 1,
        f"agreement_ratio{{{kind},{version}}}": (await results(served))["agreement"],
    }
    for sample, value in expected.items():
        assert f"softserve_shadow_{sample} " in (await served.get("/metrics")).text
        assert await served.metric(f"softserve_shadow_{sample}") == pytest.approx(value)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"version": "ffffff", "percent": 1}, (404, "adapter_not_found", "version")),
        ({"version": "ffffff"}, (422, "invalid_request", "percent")),
        ({"version": "ffffff", "percent": 0}, (422, "invalid_request", "percent")),
        ({"version": "ffffff", "percent": 101}, (422, "invalid_request", "percent")),
        ({"percent": 1}, (422, "invalid_request", "version")),
    ],
)
async def test_wrong_shadows(
    served: Served, body: dict[str, Any], error: tuple[int, str, str | None]
) -> None:
    await two_versions(served)
    assert error_of(await post(served, "shadow", **body)) == error


async def test_the_live_version_is_no_shadow(served: Served) -> None:
    live, _ = await two_versions(served)
    response = await post(served, "shadow", version=live, percent=1)
    assert error_of(response) == (409, "adapter_conflict", "version")
    assert message_of(response) == (
        "a shadow is compared with the live version of my-task, and has to be another: name "
        "another version, or make one live first"
    )


async def test_a_template_has_a_shadow(served: Served) -> None:
    old, new = await two_templates(served)
    body = {"version": new[:6], "percent": 100}
    shown = (await served.client.post(f"{TEMPLATE_PATH}/shadow", json=body)).json()["shadow"]
    assert shown["version"] == new
    asked = {"template": "mood", "inputs": {"text": "hot soup"}}
    answer = (await served.client.post("/icl/generate", json=asked)).json()
    tally = served.app.state.templates.names.tally("mood")
    await until(lambda: tally.completed == 1)

    assert answer["template"]["version"] == old
    assert answer["completions"][0]["text"] == "Mood"
    counted = await results(served, TEMPLATE_PATH)
    assert (counted["compared"], counted["equal"], counted["agreement"]) == (1, 0, 0.0)
    assert (counted["live_tokens"], counted["shadow_tokens"]) == (4, 4)
    ended = (await served.client.delete(f"{TEMPLATE_PATH}/shadow")).json()
    assert ended["shadow"] is None


async def test_a_template_and_its_adapter_have_shadows(served: Served, engine: FakeEngine) -> None:
    await shadowed(served)
    await served.client.put(TEMPLATE_PATH, json=TEMPLATE | {"adapter": NAME})
    beside = TEMPLATE | {"adapter": NAME, "instruction": "What mood?"}
    put = await served.client.put(TEMPLATE_PATH, json=beside, params={"live": "false"})
    body = {"version": put.json()["versions"][0]["version"], "percent": 100}
    await served.client.post(f"{TEMPLATE_PATH}/shadow", json=body)
    asked = {"template": "mood", "inputs": {"text": "hot soup"}}
    await served.client.post("/icl/generate", json=asked)
    await until(lambda: served.app.state.templates.names.tally("mood").completed == 1)
    await until_counted(served, "completed", 1)
    assert len(set(engine.finished)) == 3


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [([], [], 1.0), ([1, 2], [1, 2], 1.0), ([1, 2, 3, 4], [1, 2], 0.5), ([1], [2], 0.0)],
)
def test_agreement(one: list[int], other: list[int], alike: float) -> None:
    assert agreement(one, other) == alike
