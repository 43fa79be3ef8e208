"""What a version changes is measured when it becomes live, kept, and told."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from app.adapters import effect as effect_module
from app.adapters.effect import NO_EFFECT, PROBE_TEXT
from app.engine.protocol import Prompt
from app.errors import EngineDied
from tests.adapter_files import (
    Files,
    as_files,
    lora_config,
    lora_tensors,
    soft_prompt_config,
    soft_prompt_tensors,
    untrained,
    write_files,
)
from tests.api.support import PROBE_KL_DIVERGENCE, Served, error_of, serving, until
from tests.fake_engine import ARCHITECTURE, HIDDEN_SIZE, FakeEngine

Events = list[structlog.typing.EventDict]

WITHOUT_EFFECT = {"kl_divergence": 0.0, "changed": False}


def trained(seed: int = 0) -> Files:
    return as_files(lora_config(), lora_tensors(ARCHITECTURE.modules, seed=seed))


def zero() -> Files:
    return as_files(lora_config(), untrained(lora_tensors(ARCHITECTURE.modules)))


def soft_prompt(num_virtual_tokens: int = 20) -> Files:
    tensors = soft_prompt_tensors(num_virtual_tokens, HIDDEN_SIZE)
    return as_files(soft_prompt_config(num_virtual_tokens, HIDDEN_SIZE), tensors)


async def put(served: Served, files: Files, name: str = "my-task") -> httpx.Response:
    return await served.client.put(f"/adapters/{name}", files=[("file", file) for file in files])


async def shown(served: Served, name: str = "my-task") -> list[dict[str, Any]]:
    """The versions of an adapter, newest first."""
    versions: list[dict[str, Any]] = (await served.get(f"/adapters/{name}")).json()["versions"]
    return versions


async def rolled_back(served: Served) -> dict[str, Any]:
    """The version that is live then."""
    answer = (await served.client.post("/adapters/my-task/rollback")).json()
    return next(each for each in answer["versions"] if each["live"])


class Watching(FakeEngine):
    """It remembers the prompts whose next token was asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scored: list[Prompt] = []

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        self.scored.append(prompt)
        return await super().next_token_logprobs(request_id, prompt)


class Noisy(FakeEngine):
    """As on a busy server: no two answers agree in their last bits."""

    def __init__(self) -> None:
        super().__init__()
        self._noise = np.random.default_rng(0)

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        logprobs = await super().next_token_logprobs(request_id, prompt)
        noise = 1e-6 * self._noise.standard_normal(len(logprobs))
        # A LoRA's share of it is the larger one.
        return logprobs + np.float32(2 if prompt.lora else 1) * noise.astype(np.float32)


class Overflowing(FakeEngine):
    """With a LoRA, its activations are beyond every number."""

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        logprobs = await super().next_token_logprobs(request_id, prompt)
        return logprobs * np.float32(np.nan) if prompt.lora else logprobs


# Measured.


async def test_a_lora_that_was_never_trained_is_live_with_a_warning(
    served: Served, events: Events
) -> None:
    answer = (await put(served, zero())).json()
    (version,) = answer["versions"]
    assert version["live"]
    assert version["effect"] == WITHOUT_EFFECT
    assert version["warning"] == NO_EFFECT
    assert await shown(served) == [version]
    adapted = (await served.generate("hi", adapter="my-task")).json()
    assert adapted["completions"][0]["text"] == "hi"
    (warned,) = [event for event in events if event["log_level"] == "warning"]
    assert (warned["name"], warned["version"]) == ("my-task", answer["live"])
    assert warned["why"] == NO_EFFECT


async def test_the_log_has_the_effect_of_what_becomes_live(served: Served, events: Events) -> None:
    live = [(await put(served, trained(seed))).json()["live"] for seed in (1, 2)]
    await rolled_back(served)
    told = [event for event in events if event["event"] == "an adapter is live"]
    assert [event["version"] for event in told] == [*live, live[0]]
    assert [event["kl_divergence"] for event in told] == [pytest.approx(PROBE_KL_DIVERGENCE)] * 3


async def test_a_soft_prompt_has_an_effect(served: Served) -> None:
    (version,) = (await put(served, soft_prompt())).json()["versions"]
    assert version["effect"]["changed"]
    assert version["effect"]["kl_divergence"] == pytest.approx(PROBE_KL_DIVERGENCE)
    assert version["warning"] is None


async def test_the_base_model_is_asked_once() -> None:
    async with serving(Watching()) as served:
        engine: Any = served.app.state.service.engine
        digests = [(await put(served, trained(seed))).json()["live"] for seed in (1, 2)]
        assert [prompt.lora for prompt in engine.scored] == [None, *digests]
        # What may be noise is told from it.
        digest = (await put(served, zero())).json()["live"]
        assert [prompt.lora for prompt in engine.scored[3:]] == [digest, None]
        assert {bytes(prompt.token_ids) for prompt in engine.scored} == {PROBE_TEXT.encode()}


async def test_the_probe_is_cut_to_the_context_window() -> None:
    async with serving(Watching(context_window=24)) as served:
        engine: Any = served.app.state.service.engine
        await put(served, soft_prompt(20))
        assert [len(prompt.token_ids) for prompt in engine.scored] == [3, 3]
        assert engine.scored[1].num_virtual_tokens == 20


async def test_a_soft_prompt_as_long_as_the_context_window() -> None:
    async with serving(FakeEngine(context_window=21)) as served:
        response = await put(served, soft_prompt(20))
        assert error_of(response) == (422, "adapter_rejected", None)
        message = response.json()["error"]["message"]
        assert message.startswith("its 20 virtual tokens leave no room for a prompt")


async def test_on_a_busy_server_what_is_zero_has_no_effect() -> None:
    async with serving(Noisy()) as served:
        (version,) = (await put(served, zero())).json()["versions"]
        assert not version["effect"]["changed"]
        assert 0.0 < version["effect"]["kl_divergence"] < 1e-9
        assert version["warning"] == NO_EFFECT


async def test_a_watched_adapter(tmp_path: Path, events: Events) -> None:
    write_files(tmp_path / "quiet", lora_config(), untrained(lora_tensors(ARCHITECTURE.modules)))
    write_files(tmp_path / "loud", lora_config(), lora_tensors(ARCHITECTURE.modules))
    async with serving(adapter_dir=tmp_path) as served:
        assert (await shown(served, "quiet"))[0]["warning"] == NO_EFFECT
        assert (await shown(served, "loud"))[0]["effect"]["changed"]
    assert [event["name"] for event in events if event["log_level"] == "warning"] == ["quiet"]


# Kept.


async def test_rolling_back_does_not_measure_again() -> None:
    async with serving(Watching()) as served:
        engine: Any = served.app.state.service.engine
        await put(served, zero())
        await put(served, trained())
        num_scored = len(engine.scored)
        version = await rolled_back(served)
        assert version["effect"] == WITHOUT_EFFECT
        assert version["warning"] == NO_EFFECT
        assert len(engine.scored) == num_scored


async def test_a_restart_keeps_it(tmp_path: Path) -> None:
    async with serving(adapter_store=tmp_path) as served:
        await put(served, trained())
        await put(served, zero())
        before = await shown(served)
    async with serving(Watching(), adapter_store=tmp_path) as served:
        after = await shown(served)
        engine: Any = served.app.state.service.engine
        assert engine.scored == []
    told = [[(each["effect"], each["warning"]) for each in shown] for shown in (before, after)]
    assert told[0] == told[1]
    assert [effect["changed"] for effect, _ in told[0]] == [False, True]


@pytest.fixture
async def of_an_older_server(tmp_path: Path) -> Path:
    """A store without effects on record, of a trained version and the live, untrained one."""
    async with serving(adapter_store=tmp_path) as served:
        await put(served, trained())
        await put(served, zero())
    file = tmp_path / "names" / "my-task.json"
    record = json.loads(file.read_bytes())
    for entry in record["history"]:
        del entry["effect"]
    file.write_text(json.dumps(record))
    return tmp_path


async def test_a_store_of_an_older_server(of_an_older_server: Path) -> None:
    async with serving(adapter_store=of_an_older_server) as served:
        assert [each["effect"] for each in await shown(served)] == [None, None]
        assert [each["warning"] for each in await shown(served)] == [None, None]
        assert (await rolled_back(served))["effect"]["changed"]


async def test_adding_again_what_is_live_measures_it(of_an_older_server: Path) -> None:
    async with serving(adapter_store=of_an_older_server) as served:
        await put(served, zero())
        live, older = await shown(served)
        assert (live["effect"], older["effect"]) == (WITHOUT_EFFECT, None)


# Not measured.


async def test_a_busy_engine_keeps_nothing_from_being_live(
    served: Served, engine: FakeEngine, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect_module, "TIMEOUT_SECONDS", 0.05)
    engine.hold()
    (version,) = (await put(served, trained())).json()["versions"]
    assert version["live"]
    assert version["effect"] is version["warning"] is None
    (warned,) = [event for event in events if event["log_level"] == "warning"]
    assert warned["event"].startswith("the effect of an adapter is not measured")
    engine.release()
    (version,) = (await put(served, trained())).json()["versions"]
    assert version["effect"]["changed"]


async def test_a_busy_engine_holds_up_no_other(
    served: Served, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect_module, "TIMEOUT_SECONDS", 0.05)
    engine.hold()
    answers = await asyncio.gather(*(put(served, trained(i), f"task-{i}") for i in range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3


async def test_an_engine_that_dies_of_it(served: Served, engine: FakeEngine) -> None:
    engine.fail(EngineDied("the engine has died: try again"))
    assert error_of(await put(served, trained())) == (503, "engine_died", None)
    assert (await served.get("/adapters")).json() == {"adapters": []}


async def test_what_cannot_be_computed_with_replaces_nothing() -> None:
    async with serving(Overflowing()) as served:
        first = (await put(served, soft_prompt())).json()["live"]
        response = await put(served, trained(), "other")
        assert error_of(response) == (422, "adapter_rejected", None)
        assert "not finite numbers" in response.json()["error"]["message"]
        (adapter,) = (await served.get("/adapters")).json()["adapters"]
        assert adapter["live"] == first


async def test_who_leaves_while_it_is_measured_leaves_the_old_state(
    served: Served, engine: FakeEngine
) -> None:
    engine.hold()
    putting = asyncio.create_task(put(served, trained()))
    await until(lambda: bool(engine.loaded))
    putting.cancel()
    await asyncio.wait([putting])
    engine.release()
    assert (await served.get("/adapters")).json() == {"adapters": []}
    assert (await put(served, trained())).status_code == 200
