"""Runs vLLM's layers on softserve's operators; test_row_operators_in_vllm.py starts it.

It writes what vLLM chooses by itself ("unchanged") and with the plugin ("chosen", by mode), the
greatest error of each layer beside FP64, in units of its type's precision ("errors"), for which
inputs the operators run ("used"), and whether a row is the same without its batch ("same alone").
"""

import json
import sys
from typing import Any

import torch
from vllm import ir
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

from app.engine.plugin import row_operators
from tests.unit.engine.native import compile_and_load

EPSILON = 1e-5
DTYPES = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16}


class Model:
    """What is read of a model's configuration."""

    def __init__(self, *, enforce_eager: bool) -> None:
        self.enforce_eager = enforce_eager


class Config:
    def __init__(self, model: Model | None) -> None:
        self.model_config = model


def choice(model: Model | None) -> list[list[str]]:
    priority = current_platform.get_default_ir_op_priority(Config(model))
    return [priority.rms_norm, priority.fused_add_rms_norm]


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight.double()


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    unit = torch.finfo(value.dtype).eps
    return float(((value.double() - expected).abs() / (expected.abs() + 1e-2)).max() / unit)


def cases(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs as models have them, the last one not contiguous."""
    torch.manual_seed(0)
    return {
        "rows": torch.randn(33, 576).to(dtype),
        "one row": torch.randn(1, 64).to(dtype),
        "heads": torch.randn(5, 3, 64).to(dtype),
        "an odd width": torch.randn(4, 20).to(dtype),
        "a part of wider rows": torch.randn(4, 96).to(dtype)[:, :64],
    }


def norm_of(width: int, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(width, EPSILON, dtype=dtype)
    norm.weight.data = torch.randn(width).to(dtype)
    return norm


def rms_norm(x: torch.Tensor) -> float:
    norm = norm_of(x.shape[-1], x.dtype)
    return error(norm(x), exact(x, norm.weight))


def fused_add_rms_norm(x: torch.Tensor) -> float:
    norm, residual = norm_of(x.shape[-1], x.dtype), torch.randn(x.shape).to(x.dtype)
    total = x.float() + residual.float()
    out, left = norm(x.clone() if x.is_contiguous() else x, residual)
    assert torch.equal(left, total.to(x.dtype))
    # vLLM's small steps go on with the sum as it was before it was rounded.
    return min(error(out, exact(sums, norm.weight)) for sums in (left, total))


def silu_and_mul(x: torch.Tensor) -> float:
    gate, up = x.double().chunk(2, dim=-1)
    return error(SiluAndMul()(x), torch.nn.functional.silu(gate) * up)


LAYERS = {"RMSNorm": rms_norm, "RMSNorm of a sum": fused_add_rms_norm, "SwiGLU": silu_and_mul}


def same_alone() -> bool:
    x = torch.randn(33, 576)
    norm = norm_of(576, torch.float32)
    return bool(torch.equal(norm(x), torch.cat([norm(row) for row in x.split(1)])))


def operators_of(x: torch.Tensor) -> list[str]:
    """Which of softserve's operators run for a norm, and for one of a sum."""
    norm = norm_of(x.shape[-1], x.dtype)
    with torch.profiler.profile() as profile:
        norm(x)
        norm(x, x)
    ran = [event.key for event in profile.key_averages()]
    return sorted(name for name in ran if name.startswith("softserve::"))


def main() -> dict[str, Any]:
    told: dict[str, Any] = {"unchanged": choice(Model(enforce_eager=True))}
    compile_and_load()
    row_operators.register()
    row_operators.register()
    told["chosen"] = {
        "eager": choice(Model(enforce_eager=True)),
        "compiled": choice(Model(enforce_eager=False)),
        "no model": choice(None),
    }
    for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
        op.set_default([row_operators.PROVIDER, "native"])
    config = VllmConfig()
    config.compilation_config.custom_ops = ["all"]
    with set_current_vllm_config(config), torch.inference_mode():
        told["errors"] = {
            layer: {
                f"{name}, {case}": run(x)
                for name, dtype in DTYPES.items()
                for case, x in cases(dtype).items()
            }
            for layer, run in LAYERS.items()
        }
        told["same alone"] = same_alone()
        told["used"] = {case: operators_of(x) for case, x in cases(torch.float32).items()}
        told["silu"] = type(SiluAndMul()).__name__
    return told


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
