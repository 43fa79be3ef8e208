"""What an engine has to answer before the server says that it is ready."""

from dataclasses import replace

import pytest

from app.engine.proof import LORA, SOFT_PROMPT, prove
from app.engine.protocol import Prompt
from app.errors import EngineDied, ModelNotLoadable
from tests.fake_engine import ARCHITECTURE, FakeEngine


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
