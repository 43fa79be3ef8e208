"""The type of the weights: what is asked for, what the device runs best, and what the folder holds.

A checkpoint that is quantized already is served as it is; a flag that contradicts it is refused.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.engine.model.default import expanded_from
from app.errors import ModelNotLoadable
from app.settings import Precision

# The name under which the plugin registers app/engine/plugin/int8.py.
INT8_METHOD = "softserve-int8"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# In a quantized checkpoint's config.json: the name of its model, whose adapters fit it as well.
QUANTIZED_FROM = "softserve_quantized_from"
COMPRESSED_TENSORS = "compressed-tensors"


@dataclass(frozen=True, slots=True)
class Device:
    """What matters of a device: `has_bf16` and `has_int8` mean instructions for that type."""

    is_cpu: bool
    has_bf16: bool
    has_int8: bool

    @property
    def best(self) -> str:
        """The fastest type that costs no quality to speak of (docs/precision.md)."""
        return "bf16" if self.has_bf16 else "fp32" if self.is_cpu else "fp16"


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the weights are held.

    `dtype` is vLLM's name for the type of activations and of weights that are not quantized,
    `quantization` its method, None where the checkpoint says it or there is none. `made` tells how
    the weights came to be in that precision, and `reason` why it was chosen.
    """

    precision: str
    dtype: str
    made: str
    reason: str
    quantization: str | None = None


def choose_format(asked: Precision, folder: Path, device: Device) -> WeightFormat:
    """The format for the model in `folder`.

    Raises:
        ModelNotLoadable: the checkpoint contradicts `asked`, or the device cannot do it.
    """
    config = json.loads((folder / "config.json").read_bytes())
    chosen = _choose_format(asked, folder, scheme_of(config), device)
    if (source := expanded_from(folder, config)) is not None:
        return replace(chosen, made=f"{source} expanded to BF16, then {chosen.made}")
    return chosen


def _choose_format(
    asked: Precision, folder: Path, scheme: dict[str, Any] | None, device: Device
) -> WeightFormat:
    if scheme is not None:
        return _of_quantized_checkpoint(asked, folder, scheme, device)
    if asked == "int8":
        return _int8_at_load(device)
    if asked != "auto":
        return WeightFormat(asked, DTYPES[asked], "cast at load", "--precision asks for it")
    return WeightFormat(device.best, DTYPES[device.best], "cast at load", _why_best(device))


def scheme_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """How a checkpoint is quantized, by its config.json; None where it is not."""
    text_config = config.get("text_config") or {}
    return (
        config.get("quantization_config")
        or config.get("compression_config")
        or text_config.get("quantization_config")
    )


def _int8_at_load(device: Device) -> WeightFormat:
    if not device.has_int8:
        raise ModelNotLoadable(
            "this CPU has no instructions for INT8 (VNNI), and would be slower with it: "
            "use --precision fp32"
        )
    # FP32 activations on a CPU: what is computed is then the quantized weights' own result.
    dtype = "fp32" if device.is_cpu else device.best
    how = "weight-only" if device.is_cpu else "W8A8"
    return WeightFormat(
        "int8",
        DTYPES[dtype],
        f"int8 {how} (per channel), quantized at load",
        "--precision asks for it",
        quantization=INT8_METHOD,
    )


def _of_quantized_checkpoint(
    asked: Precision, folder: Path, scheme: dict[str, Any], device: Device
) -> WeightFormat:
    method = str(scheme.get("quant_method", "unknown"))
    scheme_name = int8_scheme(scheme)
    precision = method if scheme_name is None else "int8"
    if asked not in ("auto", precision):
        raise ModelNotLoadable(
            f"{folder} is quantized already ({method}{f' {scheme_name}' if scheme_name else ''}) "
            f"and cannot be served in {asked}: leave --precision out, or name the model that it "
            "was made from with --model"
        )
    if scheme_name is None:
        # What its kernels take, vLLM knows from the checkpoint.
        return WeightFormat(precision, "auto", f"{method} checkpoint", "the checkpoint is in it")
    if not device.has_int8:
        raise ModelNotLoadable(
            f"{folder} holds INT8 weights, and this CPU has no instructions for INT8 (VNNI): "
            "serve the model that it was made from"
        )
    _check_scales(folder)
    return WeightFormat(
        precision,
        # Rounding activations to BF16 is nothing beside rounding them to eight bits.
        DTYPES[device.best],
        f"{method} {scheme_name} checkpoint",
        "the checkpoint is in it",
    )


def int8_scheme(scheme: dict[str, Any]) -> str | None:
    """`W8A8` or `W8A16` for a compressed-tensors scheme of 8-bit integers, None for others."""
    if scheme.get("quant_method") != COMPRESSED_TENSORS:
        return None
    groups = list((scheme.get("config_groups") or {}).values())
    weights = [group.get("weights") or {} for group in groups]
    if not weights or any((w.get("num_bits"), w.get("type")) != (8, "int") for w in weights):
        return None
    return "W8A8" if all(group.get("input_activations") for group in groups) else "W8A16"


def _check_scales(folder: Path) -> None:
    """Refuse a folder whose INT8 weights lack their scales: vLLM would run it, and talk nonsense.

    Raises:
        ModelNotLoadable: a scale is missing, or nothing is INT8.
    """
    from safetensors import safe_open

    dtypes: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            dtypes |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    quantized = [name for name, dtype in dtypes.items() if dtype == "I8"]
    missing = [name for name in quantized if f"{name}_scale" not in dtypes]
    if missing or not quantized:
        what = f"{missing[0]}_scale" if missing else "INT8 weights"
        raise ModelNotLoadable(
            f"{folder} says that it is quantized and lacks {what}: it was not written to its end; "
            "quantize the model again"
        )


def _why_best(device: Device) -> str:
    if not device.is_cpu:
        return "it is as good as fp32 on CUDA, and twice as fast"
    if device.has_bf16:
        return "this CPU has BF16 instructions, and measured fastest with them"
    return "this CPU has no BF16 instructions: fp32 measured fastest"
