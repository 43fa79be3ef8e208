"""What is asked for an effect, and what is told of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.adapters.effect import NEARLY_NO_EFFECT, NO_EFFECT, PROBE_TEXT, Probe, warning_of
from app.adapters.version import AdapterVersion
from app.engine.effect import Effect
from app.engine.protocol import AdapterFiles, Prompt
from tests.fake_engine import FakeEngine
from tests.staged_versions import stage

TEXT = list(PROBE_TEXT.encode())


class Scored(FakeEngine):
    """It remembers what was asked of it."""

    def __init__(self, **how: Any) -> None:
        super().__init__(context_window=64, **how)
        self.prompts: list[Prompt] = []

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        self.prompts.append(prompt)
        return await super().next_token_logprobs(request_id, prompt)


@pytest.mark.parametrize(
    ("version", "base", "adapted"),
    [
        pytest.param(
            AdapterVersion("ab", "lora", 1, None, rank=1),
            Prompt(0, TEXT),
            Prompt(0, TEXT, lora="ab"),
            id="lora",
        ),
        pytest.param(
            AdapterVersion("ab", "lora", 1, None, rank=1, trained_tokens=(200, 201)),
            Prompt(0, [*TEXT, 200, 201]),
            Prompt(0, [*TEXT, 200, 201], lora="ab"),
            id="trained tokens",
        ),
        pytest.param(
            AdapterVersion("ab", "lora", 1, None, rank=1, trained_tokens=tuple(range(256))),
            Prompt(0, [*TEXT, *range(32)]),
            Prompt(0, [*TEXT, *range(32)], lora="ab"),
            id="many trained tokens",
        ),
        pytest.param(
            AdapterVersion("ab", "soft_prompt", 1, None, num_virtual_tokens=4),
            Prompt(0, TEXT),
            Prompt(0, TEXT, soft_prompt="ab", num_virtual_tokens=4),
            id="soft prompt",
        ),
        pytest.param(
            AdapterVersion("ab", "soft_prompt", 1, None, num_virtual_tokens=4, num_tasks=3),
            Prompt(0, TEXT),
            Prompt(0, TEXT, soft_prompt="ab", num_virtual_tokens=4, task=0),
            id="tasks",
        ),
    ],
)
async def test_the_probe(
    tmp_path: Path, version: AdapterVersion, base: Prompt, adapted: Prompt
) -> None:
    engine = Scored()
    await engine.start()
    stage(tmp_path, "", version.kind)
    await engine.load_adapter(AdapterFiles("ab", version.kind, tmp_path))

    effect = await Probe(engine).measure(version, tmp_path)

    assert effect is not None
    assert effect.changed
    assert engine.prompts == [base, adapted]


async def test_the_probe_is_behind_a_forced_token(tmp_path: Path) -> None:
    """Hardly anything changes that one: it is what the model was always trained to begin with."""
    engine = Scored(encoder_window=64, forced_bos_token_id=9)
    await engine.start()
    stage(tmp_path, "", "lora")
    await engine.load_adapter(AdapterFiles("ab", "lora", tmp_path))

    await Probe(engine).measure(AdapterVersion("ab", "lora", 1, None, rank=1), tmp_path)

    base = Prompt(0, TEXT, decoder_ids=(9,))
    assert engine.prompts == [base, replace(base, lora="ab")]


@pytest.mark.parametrize(
    ("effect", "warning"),
    [
        (None, None),
        (Effect(0.0, changed=False), NO_EFFECT),
        # Measured on a busy server.
        (Effect(1e-5, changed=False), NO_EFFECT),
        (Effect(1e-10, changed=True), NEARLY_NO_EFFECT),
        (Effect(1e-6, changed=True), None),
        (Effect(0.2, changed=True), None),
    ],
)
def test_who_is_warned(effect: Effect | None, warning: str | None) -> None:
    assert warning_of(effect) == warning
