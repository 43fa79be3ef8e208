"""What is made of two engines' answers, and with which settings they are asked."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.adapters.version import AdapterVersion
from app.checking.admission import Admitted
from app.checking.against_peft import NO_EFFECT, Completion, _compare, _settings
from app.engine.reference import Choice, Reference
from app.engine.vllm.unloaded import UnloadedModel
from app.settings import Settings
from softserve.schema.checks import AgainstPeft
from tests.fake_engine import ARCHITECTURE

ENGINE: Any = SimpleNamespace(
    info=SimpleNamespace(dtype="float32"), token_text=lambda token_id: f"<{token_id}>"
)
BASE = [Choice(8, -0.1, -4.0), Choice(6, -0.2, -0.2)]
ADAPTED = [Choice(5, -0.1, -0.1), Choice(6, -0.2, -0.2)]


def _compared(
    token_ids: list[int], logprobs: list[float], base: list[Choice], adapted: list[Choice]
) -> AgainstPeft:
    completion = Completion("Once", [1], None, " upon", token_ids, logprobs)
    return _compare(ENGINE, [completion], Reference([base], [adapted]), 0.01)


def test_equal() -> None:
    compared = _compared([5, 6], [-0.1, -0.201], BASE, ADAPTED)

    (prompt,) = compared.prompts
    assert (compared.equal, compared.warning, prompt.divergence) == (True, None, None)
    assert prompt.largest_difference == pytest.approx(0.001)
    assert prompt.changed_at == 0
    assert prompt.largest_change == pytest.approx(3.9)


def test_another_token() -> None:
    adapted = [ADAPTED[0], Choice(7, -0.2, -0.7)]

    compared = _compared([5, 6], [-0.1, -0.2], BASE, adapted)

    divergence = compared.prompts[0].divergence
    assert divergence is not None
    assert not compared.equal
    assert (divergence.position, divergence.token, divergence.peft_token) == (1, "<6>", "<7>")
    assert divergence.margin == pytest.approx(0.5)


def test_the_same_tokens_less_likely() -> None:
    assert not _compared([5, 6], [-0.1, -0.5], BASE, ADAPTED).equal


def test_what_is_no_number_is_null() -> None:
    compared = _compared([5, 6], [-0.1, math.nan], BASE, ADAPTED)

    assert not compared.equal
    assert compared.prompts[0].logprobs == [-0.1, None]
    assert compared.prompts[0].largest_difference is None
    assert AgainstPeft.model_validate_json(compared.model_dump_json()) == compared


@pytest.mark.parametrize("effect", [0.0, 0.0005])
def test_an_adapter_without_effect_is_warned_of(effect: float) -> None:
    """Both could be the base model's answers, and equal all the same."""
    base = [Choice(5, -0.1, -0.1 - effect), Choice(6, -0.2, -0.2)]

    compared = _compared([5, 6], [-0.1, -0.201], base, ADAPTED)

    assert compared.equal
    assert compared.warning == NO_EFFECT


def _settings_for(folder: Path, settings: Settings, prompt: str, **config: Any) -> Settings:
    (folder / "config.json").write_text(json.dumps(config))
    version = AdapterVersion("0" * 64, "soft_prompt", 10, None, num_virtual_tokens=20)
    model = UnloadedModel("tiny", folder, ARCHITECTURE, 4096)
    return _settings(Admitted(version, folder, folder, model), settings, [prompt])


def test_the_engine_is_small_and_exact(tmp_path: Path) -> None:
    asked = _settings_for(tmp_path, Settings(max_lora_rank=64), "Once")

    assert (asked.precision, asked.context_window, asked.kv_cache_gib) == ("fp32", 256, 1.0)
    assert (asked.max_loras, asked.max_loaded_adapters, asked.max_lora_rank) == (1, 1, 64)


def test_the_context_window_has_room_for_the_prompt(tmp_path: Path) -> None:
    assert _settings_for(tmp_path, Settings(), "a" * 1000).context_window == 1000 + 16 + 20 + 32
    assert _settings_for(tmp_path, Settings(), "a" * 9000).context_window == 4096


def test_a_precision_that_is_asked_for_or_in_the_checkpoint_stays(tmp_path: Path) -> None:
    assert _settings_for(tmp_path, Settings(precision="bf16"), "a").precision == "bf16"
    scheme = {"quant_method": "compressed-tensors"}
    quantized = _settings_for(tmp_path, Settings(), "a", quantization_config=scheme)
    assert quantized.precision == "auto"
