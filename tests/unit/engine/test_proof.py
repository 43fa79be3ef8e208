"""What an engine has to answer before the server says that it is ready."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from app.engine.effect import without_adapters
from app.engine.proof import LORA, SOFT_PROMPT, prove
from app.engine.protocol import AdapterFiles, ModuleShape, Prompt
from app.errors import EngineDied, ModelNotLoadable
from softserve.schema.adapters import WEIGHTS_FILE
from tests.fake_engine import ARCHITECTURE, HIDDEN_SIZE, FakeEngine


class Frail(FakeEngine):
    """It dies at a prompt with one of these adapters; None is a prompt without any."""

    def __init__(self, *deadly: str | None) -> None:
        super().__init__()
        self.deadly = deadly

    def _check_loaded(self, prompt: Prompt) -> None:
        super()._check_loaded(prompt)
        if (prompt.lora or prompt.soft_prompt) in self.deadly:
            self.die()
            raise EngineDied("the engine has died: try again")


class Deaf(FakeEngine):
    """It loads adapters of these names and answers as if there were none."""

    def __init__(self, *ignored: str) -> None:
        super().__init__()
        self.ignored = ignored

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        if (prompt.lora or prompt.soft_prompt) in self.ignored:
            prompt = without_adapters(prompt)
        return await super().next_token_logprobs(request_id, prompt)


class Reading(FakeEngine):
    """It knows the tensors of what it has loaded, which only lie there meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, dict[str, NDArray[np.float32]]] = {}

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        await super().load_adapter(adapter)
        self.tensors[adapter.digest] = load_file(adapter.folder / WEIGHTS_FILE)


async def test_every_path_is_taken_and_nothing_is_left() -> None:
    engine = FakeEngine()
    await engine.start()

    await prove(engine)

    assert engine.loads == [LORA, SOFT_PROMPT] == engine.unloads
    assert engine.finished == ["proof-0"] * 3
    assert not engine.loaded
    assert not engine.open


@pytest.mark.parametrize(
    ("deadly", "said"),
    [
        (None, "dies at a request of the base model: see its own error above"),
        (LORA, "dies at a request with a lora: start the server with --max-loras 0"),
        (SOFT_PROMPT, "dies at a request with a soft prompt: start the server with"),
    ],
)
async def test_the_path_on_which_it_dies_is_named(deadly: str | None, said: str) -> None:
    engine = Frail(deadly)
    await engine.start()

    with pytest.raises(ModelNotLoadable, match=said):
        await prove(engine)


@pytest.mark.parametrize(
    ("ignored", "said"),
    [
        (LORA, "a request with a lora: start the server with --max-loras 0"),
        (SOFT_PROMPT, "a request with a soft prompt: start the server with --max-virtual-tokens 0"),
    ],
)
async def test_an_engine_that_ignores_adapters_does_not_become_ready(
    ignored: str, said: str
) -> None:
    engine = Deaf(ignored)
    await engine.start()

    with pytest.raises(ModelNotLoadable, match=f"answers as the base model alone at {said}"):
        await prove(engine)


async def test_the_adapters_are_of_finite_values_that_change_something() -> None:
    engine = Reading()
    await engine.start()

    await prove(engine)

    for tensors in engine.tensors.values():
        for tensor in tensors.values():
            assert np.isfinite(tensor).all()
            assert tensor.all()


LINEAR = ModuleShape("linear", HIDDEN_SIZE, HIDDEN_SIZE)


@pytest.mark.parametrize(
    ("modules", "adapted"),
    [
        pytest.param(
            ["embed_tokens", "project_in", "layers.0.q", "layers.0.mlp.up", "layers.1.q"],
            {"layers.0.q", "layers.0.mlp.up"},
            id="a layer",
        ),
        pytest.param(["layers.0.q", "layers.0.experts.3.up"], {"layers.0.q"}, id="experts"),
        pytest.param(["first", "second"], {"first", "second"}, id="no layers"),
    ],
)
async def test_the_lora_is_for_the_modules_of_one_layer(
    monkeypatch: pytest.MonkeyPatch, modules: list[str], adapted: set[str]
) -> None:
    engine = Reading()
    await engine.start()
    shapes = dict.fromkeys(modules, LINEAR) | {"embed_tokens": ModuleShape("embedding", 9, 8)}
    monkeypatch.setattr(FakeEngine, "architecture", replace(ARCHITECTURE, modules=shapes))

    await prove(engine)

    halves = ("lora_A.weight", "lora_B.weight")
    assert engine.tensors[LORA].keys() == {
        f"base_model.model.{module}.{half}" for module in adapted for half in halves
    }


async def test_an_adapter_that_is_refused_does_not_end_the_start() -> None:
    engine = FakeEngine()
    engine.reject(LORA, "not this one")
    await engine.start()

    await prove(engine)

    assert engine.unloads == [SOFT_PROMPT]


async def test_modules_that_the_engine_does_not_adapt_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine()
    await engine.start()
    none_adapted = replace(ARCHITECTURE, unadapted=frozenset(ARCHITECTURE.modules))
    monkeypatch.setattr(FakeEngine, "architecture", none_adapted)

    await prove(engine)

    assert engine.loads == [SOFT_PROMPT]
