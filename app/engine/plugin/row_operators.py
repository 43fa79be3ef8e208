"""RMSNorm and SwiGLU on a CPU in eager mode, each by one operator of native/row_operators.cpp.

vLLM counts on a compiler that fuses the ten small steps of PyTorch in which it computes them. In
eager mode nothing is fused, and they take a quarter of a step of a small model. Its own kernels for
a CPU, which it does not use, share even the smallest work among all threads, and wait for the last.

The operators round once, at their end: in BF16 they are nearer to the exact value than small steps.
"""

from typing import Any

import torch
from torch import Tensor
from vllm import ir
from vllm.config.kernel import IrOpPriorityConfig
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.platforms import current_platform
from vllm.platforms.cpu import CpuPlatform

from app.engine.plugin.native import library

# Of these operators, among vLLM's.
PROVIDER = "softserve"


def register() -> None:
    """Have vLLM choose them where they are compiled."""
    if not current_platform.is_cpu() or PROVIDER in ir.ops.rms_norm.impls:
        return
    try:
        library.load()
    except library.NotCompiledError:
        return
    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_norm_fits)(_rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_sum_fits, inplace=True)(
        _fused_add_rms_norm
    )
    CpuPlatform.get_default_ir_op_priority = classmethod(_priority)
    # Without a name of its own: `custom_ops` turns it on and off as vLLM's.
    op_registry_oot[SiluAndMul.__name__] = NativeSiluAndMul


def _priority(platform: Any, config: Any) -> IrOpPriorityConfig:
    eager = config.model_config is not None and config.model_config.enforce_eager
    first = [PROVIDER, "native"] if eager else ["native"]
    return IrOpPriorityConfig.with_default(["native"], rms_norm=first, fused_add_rms_norm=first)


def _norm_fits(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype


def _sum_fits(
    x: Tensor,
    x_residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return (
        _norm_fits(x, weight, epsilon, variance_size)
        and x_residual.dtype == x.dtype
        # Both are written.
        and x.is_contiguous()
        and x_residual.is_contiguous()
    )


def _rms_norm(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.ops.softserve.rms_norm(_rows(out), _rows(x), weight, epsilon)
    return out


def _fused_add_rms_norm(
    x: Tensor,
    x_residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    torch.ops.softserve.add_rms_norm(_rows(x), _rows(x_residual), weight, epsilon)
    return x, x_residual


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class NativeSiluAndMul(SiluAndMul):  # type: ignore[misc]
    """vLLM's layer, by one operator."""

    def forward_cpu(self, x: Tensor) -> Tensor:
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        torch.ops.softserve.silu_and_mul(_rows(out), _rows(x))
        return out
