"""Which type the weights get: the flag, the device and the checkpoint decide together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.engine.model import default as default_model
from app.engine.model.precision import INT8_METHOD, Device, choose_format, int8_scheme
from app.errors import ModelNotLoadable
from app.settings import Precision

CUDA = Device(is_cpu=False, has_bf16=True, has_int8=True)
OLD_CUDA = Device(is_cpu=False, has_bf16=False, has_int8=True)
NEW_CPU = Device(is_cpu=True, has_bf16=True, has_int8=True)
CPU = Device(is_cpu=True, has_bf16=False, has_int8=True)
OLD_CPU = Device(is_cpu=True, has_bf16=False, has_int8=False)

INTEGERS = {"num_bits": 8, "type": "int"}
W8A8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": INTEGERS, "input_activations": INTEGERS}},
}
W8A16: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": INTEGERS, "input_activations": None}},
}
W4A16: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": INTEGERS | {"num_bits": 4}}},
}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4}


def make_folder(folder: Path, scheme: dict[str, Any] | None = None, **tensors: str) -> Path:
    """A model's folder: its quantization, and its tensors by name and type."""
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    if scheme is not None:
        config |= {"quantization_config": scheme}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.zeros((2, 2), dtype) for name, dtype in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


def make_default_model(cache_dir: Path) -> Path:
    """The folder of the default model as version 0.1.0 left it: without a mark."""
    folder = cache_dir / "models" / default_model.NAME
    folder.mkdir(parents=True)
    default_model.lock_of(folder).touch()
    return make_folder(folder)


def make_quantized(folder: Path, scheme: dict[str, Any]) -> Path:
    return make_folder(folder, scheme, **{"a.weight": "int8", "a.weight_scale": "float32"})


@pytest.mark.parametrize(
    ("device", "precision", "dtype", "reason"),
    [
        (CUDA, "bf16", "bfloat16", "CUDA"),
        (OLD_CUDA, "fp16", "float16", "CUDA"),
        (NEW_CPU, "bf16", "bfloat16", "has BF16 instructions"),
        (CPU, "fp32", "float32", "no BF16 instructions"),
    ],
)
def test_auto_is_what_the_device_runs_best(
    tmp_path: Path, device: Device, precision: str, dtype: str, reason: str
) -> None:
    chosen = choose_format("auto", make_folder(tmp_path), device)

    assert (chosen.precision, chosen.dtype) == (precision, dtype)
    assert (chosen.made, chosen.quantization) == ("cast at load", None)
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("asked", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
@pytest.mark.parametrize("device", [CUDA, NEW_CPU, CPU, OLD_CPU])
def test_a_type_that_is_asked_for_is_had(
    tmp_path: Path, asked: Precision, dtype: str, device: Device
) -> None:
    chosen = choose_format(asked, make_folder(tmp_path), device)

    assert (chosen.precision, chosen.dtype, chosen.quantization) == (asked, dtype, None)


@pytest.mark.parametrize(
    ("device", "dtype", "made"),
    [
        (CPU, "float32", "int8 weight-only (per channel), quantized at load"),
        (NEW_CPU, "float32", "int8 weight-only (per channel), quantized at load"),
        (CUDA, "bfloat16", "int8 W8A8 (per channel), quantized at load"),
    ],
)
def test_int8_from_an_ordinary_checkpoint(
    tmp_path: Path, device: Device, dtype: str, made: str
) -> None:
    chosen = choose_format("int8", make_folder(tmp_path), device)

    assert (chosen.precision, chosen.dtype, chosen.made) == ("int8", dtype, made)
    assert chosen.quantization == INT8_METHOD


def test_int8_on_a_cpu_without_instructions_for_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoadable, match=r"no instructions for INT8.*--precision fp32"):
        choose_format("int8", make_folder(tmp_path), OLD_CPU)


@pytest.mark.parametrize("asked", ["auto", "int8"])
@pytest.mark.parametrize("scheme", [W8A8, W8A16])
def test_a_checkpoint_in_int8_is_served_as_it_is(
    tmp_path: Path, asked: Precision, scheme: dict[str, Any]
) -> None:
    chosen = choose_format(asked, make_quantized(tmp_path, scheme), CPU)

    assert (chosen.precision, chosen.dtype, chosen.quantization) == ("int8", "float32", None)
    assert chosen.made == f"compressed-tensors {int8_scheme(scheme)} checkpoint"


@pytest.mark.parametrize(
    ("asked", "made"),
    [("fp32", "cast at load"), ("int8", "int8 weight-only (per channel), quantized at load")],
)
def test_the_default_model_says_that_it_was_held_in_four_bits(
    tmp_path: Path, asked: Precision, made: str
) -> None:
    chosen = choose_format(asked, make_default_model(tmp_path), CPU)

    assert chosen.made == f"4-bit GGUF (Q4_1) expanded to BF16, then {made}"


def test_a_mark_says_it_wherever_the_folder_is(tmp_path: Path) -> None:
    folder = make_quantized(tmp_path, W8A8)
    config = json.loads((folder / "config.json").read_text())
    marked = config | {default_model.EXPANDED_FROM: "3-bit GGUF"}
    (folder / "config.json").write_text(json.dumps(marked))

    chosen = choose_format("auto", folder, CPU)

    assert chosen.made == "3-bit GGUF expanded to BF16, then compressed-tensors W8A8 checkpoint"


def test_another_folder_of_the_same_name_is_not_the_default_model(tmp_path: Path) -> None:
    folder = tmp_path / default_model.NAME
    folder.mkdir()

    assert choose_format("fp32", make_folder(folder), CPU).made == "cast at load"


def test_a_checkpoint_in_another_format_is_left_to_vllm(tmp_path: Path) -> None:
    chosen = choose_format("auto", make_folder(tmp_path, GPTQ), CUDA)

    assert (chosen.precision, chosen.dtype, chosen.made) == ("gptq", "auto", "gptq checkpoint")


@pytest.mark.parametrize(
    ("asked", "scheme", "said"),
    [
        ("fp32", W8A8, "quantized already (compressed-tensors W8A8) and cannot be served in fp32"),
        ("bf16", GPTQ, "quantized already (gptq) and cannot be served in bf16"),
        ("int8", GPTQ, "quantized already (gptq) and cannot be served in int8"),
        ("int8", W4A16, "quantized already (compressed-tensors) and cannot be served in int8"),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint(
    tmp_path: Path, asked: Precision, scheme: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelNotLoadable) as refused:
        choose_format(asked, make_quantized(tmp_path, scheme), CUDA)

    assert said in refused.value.message
    assert "leave --precision out" in refused.value.message


def test_a_checkpoint_in_int8_on_a_cpu_without_instructions_for_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoadable, match="no instructions for INT8"):
        choose_format("auto", make_quantized(tmp_path, W8A8), OLD_CPU)


@pytest.mark.parametrize(
    ("tensors", "lacks"),
    [
        ({"a.weight": "int8"}, "lacks a.weight_scale"),
        ({"a.weight": "float16"}, "lacks INT8 weights"),
    ],
)
def test_a_half_written_quantized_folder(
    tmp_path: Path, tensors: dict[str, str], lacks: str
) -> None:
    folder = make_folder(tmp_path, W8A8, **tensors)

    with pytest.raises(ModelNotLoadable, match=lacks):
        choose_format("auto", folder, CPU)
