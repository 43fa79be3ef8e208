"""Adapters for split projections on a model that has them fused, and the other way round."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from app.adapters.validation import validate
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture
from app.engine.vllm.architecture import fused_in, modules_of, without_weights
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits
from tests.fused_models import CONFIGS, make_models
from tests.unit.adapters.test_conversion import served_deltas

LIMITS = Limits()
ARCHITECTURES = {
    model_type: Architecture(frozenset({"tiny"}), 128, modules_of(model), fused=fused_in(model))
    for model_type, model in ((name, without_weights(each)) for name, each in CONFIGS.items())
}
OTHER = {"llama": "phi3", "phi3": "llama"}
# By name: the model that it is trained on, and the configuration.
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "all of llama's": ("llama", {"target_modules": "all-linear"}),
    "some of llama's": ("llama", {"target_modules": ["q_proj", "v_proj", "up_proj"]}),
    "one of llama's": ("llama", {"target_modules": ["k_proj", "o_proj"]}),
    "one layer of llama's": (
        "llama",
        {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]},
    ),
    "llama's patterns": (
        "llama",
        {
            "target_modules": r".*\.(q|k|v)_proj|.*gate_proj",
            "rank_pattern": {"k_proj": 2, "layers.1.self_attn.v_proj": 3},
            "alpha_pattern": {"q_proj": 3, ".*gate_proj": 5},
            "use_rslora": True,
        },
    ),
    "all of phi3's": ("phi3", {"target_modules": "all-linear"}),
    "phi3's patterns": (
        "phi3",
        {
            "target_modules": ["qkv_proj", "gate_up_proj"],
            "rank_pattern": {"qkv_proj": 6},
            "alpha_pattern": {r"layers\.0\.mlp\.gate_up_proj": 9},
        },
    ),
    "phi3's attention": ("phi3", {"target_modules": ["qkv_proj"]}),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return make_models()


def train(model: Any, config: Any, folder: Path) -> Any:
    """PEFT's model with random numbers, saved."""
    adapted = get_peft_model(deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return adapted


def lora(**options: Any) -> LoraConfig:
    return LoraConfig("CAUSAL_LM", **({"r": 4, "lora_alpha": 8} | options))


def serve(folder: Path, model_type: str, limits: Limits = LIMITS) -> AdapterVersion:
    return validate(folder, ARCHITECTURES[model_type], limits)


def logits(model: Any, folder: Path | None = None) -> torch.Tensor:
    """With what the engine is given of an adapter."""
    model = deepcopy(model)
    for module, delta in (served_deltas(folder) if folder else {}).items():
        model.get_submodule(module).weight.data += delta
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([[5, 9, 33, 300, 120, 4]])).logits
    return found


def test_the_two_forms_are_one_model(models: dict[str, Any]) -> None:
    """Which proves the order of the rows, and the widths."""
    torch.testing.assert_close(logits(models["phi3"]), logits(models["llama"]))
    fused = ARCHITECTURES["phi3"].fused
    assert fused["model.layers.1.self_attn.qkv_proj"] == {
        "q_proj": 128,
        "k_proj": 64,
        "v_proj": 64,
    }
    assert fused["model.layers.0.mlp.gate_up_proj"] == {"gate_proj": 256, "up_proj": 256}
    assert ARCHITECTURES["llama"].fused == {}


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_those_of_peft(models: dict[str, Any], name: str, tmp_path: Path) -> None:
    trained_on, options = ADAPTERS[name]
    served_on = OTHER[trained_on]
    adapted = train(models[trained_on], lora(**options), tmp_path)

    version = serve(tmp_path, served_on)

    expected = logits(adapted)
    torch.testing.assert_close(logits(models[served_on], tmp_path), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(logits(models[served_on]), expected, atol=0.1)
    assert f"in the base model: served as the LoRA of rank {version.rank}" in version.notes[0]
    own = {module.rpartition(".")[2] for module in ARCHITECTURES[served_on].modules}
    assert own.issuperset(version.target_modules)
    # In none of them is the rest named and left out.
    assert len(version.notes) == 1


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_models_own_adapters_stay_as_they_are(
    models: dict[str, Any], name: str, tmp_path: Path
) -> None:
    trained_on, options = ADAPTERS[name]
    train(models[trained_on], lora(**options), tmp_path)
    sent = (tmp_path / WEIGHTS_FILE).read_bytes()
    assert serve(tmp_path, trained_on).notes == ()
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == sent


def test_another_name_and_wrappers(models: dict[str, Any], tmp_path: Path) -> None:
    """Baichuan's name, in a file that a training framework wrote."""
    adapted = train(models["phi3"], lora(target_modules=["qkv_proj"]), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    renamed = {
        f"module.{name.replace('qkv_proj', 'W_pack').replace('.weight', '.default.weight')}": tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, tmp_path / WEIGHTS_FILE)
    fields = json.loads((tmp_path / CONFIG_FILE).read_bytes())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(fields | {"target_modules": ["W_pack"]}))
    version = serve(tmp_path, "llama")
    assert "'W_pack' are 'k_proj', 'q_proj', 'v_proj' in the base model" in version.notes[1]
    served = logits(models["llama"], tmp_path)
    torch.testing.assert_close(served, logits(adapted), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("trained_on", "targets"), [("llama", "q_proj"), ("phi3", "qkv_proj")])
def test_other_types_too(
    models: dict[str, Any], trained_on: str, targets: str, tmp_path: Path
) -> None:
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=6, target_r=3, total_step=10, target_modules=[targets]
    )
    adapted = train(models[trained_on], config, tmp_path)
    version = serve(tmp_path, OTHER[trained_on])
    served = logits(models[OTHER[trained_on]], tmp_path)
    torch.testing.assert_close(served, logits(adapted), atol=1e-3, rtol=1e-3)
    assert any("AdaLoRA: served as" in note for note in version.notes)


@pytest.mark.parametrize(
    ("trained_on", "targets"),
    [("llama", ["q_proj", "k_proj", "v_proj", "o_proj"]), ("phi3", ["qkv_proj", "o_proj"])],
)
def test_the_magnitudes_of_a_dora_go_with_the_rows(
    models: dict[str, Any], trained_on: str, targets: list[str], tmp_path: Path
) -> None:
    """On the engine, tests/server/test_fused_projections.py compares the text."""
    train(models[trained_on], lora(target_modules=targets, use_dora=True), tmp_path)
    sent = magnitudes(tmp_path)

    serve(tmp_path, OTHER[trained_on])

    apart, fused = (sent, magnitudes(tmp_path))[:: 1 if trained_on == "llama" else -1]
    prefix = "base_model.model.model.layers.1.self_attn."
    together = torch.cat([apart[f"{prefix}{part}"] for part in ("q_proj", "k_proj", "v_proj")])
    assert (fused[f"{prefix}qkv_proj"] == together).all()
    assert (fused[f"{prefix}o_proj"] == apart[f"{prefix}o_proj"]).all()
    assert (len(apart), len(fused)) == (8, 4)


def magnitudes(folder: Path) -> dict[str, torch.Tensor]:
    """By module."""
    end = ".lora_magnitude_vector"
    tensors = load_file(folder / WEIGHTS_FILE)
    return {name.removesuffix(end): each for name, each in tensors.items() if name.endswith(end)}


def test_a_dora_of_some_parts(models: dict[str, Any], tmp_path: Path) -> None:
    train(models["llama"], lora(target_modules=["q_proj"], use_dora=True), tmp_path)
    with pytest.raises(AdapterRejected, match=r"qkv_proj' in one, and .* of its parts alone"):
        serve(tmp_path, "phi3")


def test_ranks_add_up(models: dict[str, Any], tmp_path: Path) -> None:
    train(models["llama"], lora(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]), tmp_path)
    with pytest.raises(AdapterRejected, match=r"'q_proj', 'v_proj' are 'qkv_proj' .* add up to 12"):
        serve(tmp_path, "phi3", Limits(max_lora_rank=11))
    assert serve(tmp_path, "phi3", Limits(max_lora_rank=12)).rank == 12


def test_a_fused_weight_of_interleaved_rows(models: dict[str, Any], tmp_path: Path) -> None:
    """Of a model whose order is not known, nothing is served in another form."""
    train(models["llama"], lora(target_modules=["q_proj"]), tmp_path)
    unknown = replace(ARCHITECTURES["phi3"], fused={})
    with pytest.raises(AdapterRejected, match="a module that the base model does not have"):
        validate(tmp_path, unknown, LIMITS)


def test_modules_that_the_engine_does_not_adapt(models: dict[str, Any], tmp_path: Path) -> None:
    for trained_on, target, served in (
        ("llama", "q_proj", "model.layers.0.self_attn.qkv_proj"),
        ("phi3", "qkv_proj", "model.layers.0.self_attn.k_proj"),
    ):
        train(models[trained_on], lora(target_modules=[target]), tmp_path)
        architecture = replace(ARCHITECTURES[OTHER[trained_on]], unadapted=frozenset({served}))
        with pytest.raises(AdapterRejected, match="to which the engine adds no LoRA"):
            validate(tmp_path, architecture, LIMITS)


def test_names_are_those_of_the_adapters_own_model(models: dict[str, Any], tmp_path: Path) -> None:
    """Tensors that its target_modules does not name, whatever the base model calls them."""
    train(models["llama"], lora(target_modules=["q_proj", "v_proj"]), tmp_path)
    fields = json.loads((tmp_path / CONFIG_FILE).read_bytes())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(fields | {"target_modules": ["qkv_proj"]}))
    with pytest.raises(AdapterRejected, match="q_proj', which target_modules does not name"):
        serve(tmp_path, "phi3")


@pytest.mark.parametrize("trained_on", ["llama", "phi3"])
def test_both_forms_at_once(models: dict[str, Any], trained_on: str, tmp_path: Path) -> None:
    targets = {"llama": "q_proj", "phi3": "qkv_proj"}
    tensors: dict[str, torch.Tensor] = {}
    for model_type, target in targets.items():
        train(models[model_type], lora(target_modules=[target]), tmp_path)
        tensors |= load_file(tmp_path / WEIGHTS_FILE)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterRejected, match="a module that the base model does not have"):
        serve(tmp_path, trained_on)


def test_wrong_widths(models: dict[str, Any], tmp_path: Path) -> None:
    """Of a model with other heads: each part has the width of the base model's."""
    train(models["llama"], lora(target_modules=["q_proj", "k_proj"]), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    name = "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"
    save_file(tensors | {name: torch.zeros(128, 4)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterRejected, match=r"shape \(128, 4\); expected \(64, 4\)"):
        serve(tmp_path, "phi3")
