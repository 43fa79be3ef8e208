"""Which of PEFT's modules vLLM adds LoRAs to."""

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
PACKED = {f"{ATTENTION}.qkv_proj": [f"{ATTENTION}.{name}_proj" for name in "qkv"]}


def _adapted(names: list[str], *wrapped: str, mapper: Any = None) -> list[str]:
    from app.engine.plugin.adapted import AdaptedModules

    manager = SimpleNamespace(
        modules=dict.fromkeys(wrapped),
        packed_modules=PACKED,
        model=SimpleNamespace(hf_to_vllm_mapper=mapper),
    )
    worker = AdaptedModules()
    worker.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager))
    return worker.softserve_adapted_modules(names)


def test_packed_and_plain_modules() -> None:
    names = [f"{ATTENTION}.q_proj", f"{ATTENTION}.o_proj", "lm_head"]
    assert _adapted(names, f"{ATTENTION}.qkv_proj", f"{ATTENTION}.o_proj") == names[:2]
    assert _adapted(names, "lm_head") == ["lm_head"]


def test_experts_are_left_to_vllm() -> None:
    names = [f"{MLP}.experts.0.gate_proj"]
    assert _adapted(names) == names


@pytest.mark.parametrize("prefix", ["transformer.", "language_model.model."])
def test_renamed_modules(prefix: str) -> None:
    from vllm.model_executor.models.utils import WeightsMapper

    mapper = WeightsMapper(orig_to_new_prefix={"model.": prefix})
    inner = f"{MLP}.down_proj".removeprefix("model.")
    assert _adapted([f"{MLP}.down_proj"], f"{prefix}{inner}", mapper=mapper)
    assert not _adapted([f"{MLP}.down_proj"], f"{MLP}.down_proj", mapper=mapper)
