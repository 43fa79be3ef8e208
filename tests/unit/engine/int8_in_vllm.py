"""Runs the INT8 products of softserve's plugin on vLLM's kernels; test_int8.py starts it.

It writes {name: figure} to stdout.
"""

import json
import sys

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel

from app.engine.plugin.int8 import (
    Int8LinearMethod,
    TwoDigitProduct,
    quantize_rows,
    register,
)

SIZE_IN, SIZE_OUT, NUM_ROWS = 96, 64, 5


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE_OUT, SIZE_IN, generator=generator)
    # One channel far above the others, as language models have them; and a token that is all zeros.
    x = torch.randn(NUM_ROWS, SIZE_IN, generator=generator)
    x[:, 3] *= 50
    x[1] = 0
    bias = torch.randn(SIZE_OUT, generator=generator)
    integers, scale = quantize_rows(weight)
    exact = x @ (integers * scale).T
    product = TwoDigitProduct(integers, scale)
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    method = Int8LinearMethod.__new__(Int8LinearMethod)
    method.process_weights_after_loading(layer)
    measured = {
        "two digits": error(product(layer, x, None), exact),
        "one digit": error(one_digit(x, integers, scale), exact),
        "with a bias": error(product(layer, x, bias), exact + bias),
        "in a batch of batches": error(product(layer, x[None], None), exact[None]),
        "of a layer": error(method.apply(layer, x), exact),
        "weights left beside the packed ones": layer.weight.numel(),
        "rounding": float((integers * scale - weight).abs().div(scale).max()),
        "rows of zeros": float(quantize_rows(torch.zeros(2, 4))[0].abs().max()),
        "weights left by vLLM's kernel": left_by_vllm(integers, scale),
    }
    sys.stdout.write(json.dumps(measured) + "\n")


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest, as a share of the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def one_digit(x: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W8A8 as vLLM does it."""
    packed = ops.create_onednn_scaled_mm(integers.t(), scale, torch.float32, True, False)
    digits, scales, _ = ops.onednn_scaled_int8_quant(x)
    product = torch.empty(len(x), len(integers))
    return ops.onednn_scaled_mm(packed, digits, product, scales, None, None, None)


def left_by_vllm(integers: torch.Tensor, scale: torch.Tensor) -> int:
    """How many weights its W8A8 kernel leaves in a layer: it has to leave a parameter."""
    register()
    kernel = CPUInt8ScaledMMLinearKernel.__new__(CPUInt8ScaledMMLinearKernel)
    config = {"is_static_input_scheme": False, "is_channelwise": True, "input_symmetric": False}
    kernel.config = type("Config", (), config)()
    kernel.layer_param_names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp"]
    layer = torch.nn.Module()
    layer.logical_widths = [SIZE_OUT]
    layer.weight = torch.nn.Parameter(integers, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
    layer.input_scale = layer.input_zero_point = layer.azp = None
    kernel.process_weights_for_onednn(layer)
    return int(layer.weight.numel())


if __name__ == "__main__":
    main()
