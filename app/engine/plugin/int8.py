"""INT8 weights from an ordinary checkpoint, quantized layer by layer while it loads.

Every dense linear layer keeps its weights as 8-bit integers, with one scale for each output
channel. So does the output head on a CPU, where it is a fifth of what a token reads; the embedding,
of which a token reads one row, stays as it is.

On a CPU the products are sums of 8-bit products, as in W8A8, but each activation is two digits of
8 bits, the second for what the first leaves over. That is as exact as weight-only quantization, and
runs on the INT8 instructions: unpacking the weights into floats first, as PyTorch's and torchao's
kernels do, makes a batch of 16 slower than FP32. docs/precision.md has the figures.

Elsewhere the kernels are vLLM's own for W8A8, with activations of one digit.
"""

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.kernels.linear import init_int8_linear_kernel
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.quantization.online.fp8 import OnlineLinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import current_platform

from app.engine.model.precision import INT8_METHOD

MAX = 127
# oneDNN keeps a compiled primitive for so many batch sizes; vLLM's own number.
NUM_PRIMITIVES = 32
# So many tokens at a time: what lies between the products then stays in the CPU's cache.
MAX_ROWS = 256


def register() -> None:
    """Have vLLM know the method by its name, and put LoRAs on its own INT8 layers."""
    register_quantization_config(INT8_METHOD)(Int8Config)
    CPUInt8ScaledMMLinearKernel.process_weights_for_onednn = _leaving_a_parameter


_process_weights_for_onednn = CPUInt8ScaledMMLinearKernel.process_weights_for_onednn


def _leaving_a_parameter(kernel: CPUInt8ScaledMMLinearKernel, layer: torch.nn.Module) -> None:
    """As vLLM 0.32 does it, but for a layer without weights: a LoRA asks them for their device."""
    _process_weights_for_onednn(kernel, layer)
    layer.weight = _no_weights()


def _no_weights(dtype: torch.dtype = torch.int8) -> torch.nn.Parameter:
    """What is left in a layer whose weights oneDNN has packed."""
    return torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)


class Int8Config(QuantizationConfig):  # type: ignore[misc]
    """INT8 for all linear layers."""

    def get_name(self) -> str:
        return INT8_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Int8Config":
        return cls()

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, LinearBase):
            return Int8LinearMethod()
        if isinstance(layer, VocabParallelEmbedding) and current_platform.is_cpu():
            return Int8HeadMethod()
        return None


class Int8LinearMethod(OnlineLinearBase):  # type: ignore[misc]
    """One linear layer: its weights come as floats, and are integers as soon as they are whole."""

    activation_quant_key = None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        # vLLM calls once when the layer's last weight has come, and again for every layer at the
        # end.
        if hasattr(layer, "int8_product"):
            return
        weight, scale = quantize_rows(layer.weight)
        if current_platform.is_cpu():
            layer.int8_product = TwoDigitProduct(weight, scale)
            replace_parameter(layer, "weight", _no_weights())
        else:
            replace_parameter(layer, "weight", weight)
            replace_parameter(layer, "weight_scale", scale)
            layer.int8_product = OneDigitProduct(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        product: torch.Tensor = layer.int8_product(layer, x, bias)
        return product


class Int8HeadMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """The output head on a CPU, and the embedding, whose weights may be the same.

    app/engine/plugin/embeddings.py decides which of them is packed. The embedding keeps its weights
    as they are.
    """

    def softserve_pack(self, layer: torch.nn.Module) -> None:
        packed = TwoDigitProduct(*quantize_rows(layer.weight))
        layer.cpu_linear = lambda x, weight, bias: packed(layer, x, bias)
        if isinstance(layer, ParallelLMHead):
            layer.weight = _no_weights(layer.weight.dtype)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest integers of (out, in) weights, and the scale (out, 1) of each row."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1, keepdim=True) / MAX
    # A row of zeros has a scale of zero, and any integers.
    quantized = (weight / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return quantized.to(torch.int8), scale


class TwoDigitProduct:
    """x @ W.T for INT8 weights, of which oneDNN keeps the only copy.

    x = s1 * d1 + s2 * d2 for digits d1, d2 of 8 bits and a scale of each for every token.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        # oneDNN reads it where it lies.
        self.scale = scale
        self.packed = ops.create_onednn_scaled_mm(
            weight.t(),
            scale,
            torch.get_default_dtype(),
            dynamic_quant=True,
            use_azp=False,
            primitive_cache_size=NUM_PRIMITIVES,
        )

    def __call__(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        rows = x.reshape(-1, self.packed.k)
        total = torch.empty((len(rows), self.packed.n), dtype=x.dtype)
        for start in range(0, len(rows), MAX_ROWS):
            self._multiply(rows[start : start + MAX_ROWS], total[start : start + MAX_ROWS])
        if bias is not None:
            total += bias
        return total.view(*x.shape[:-1], self.packed.n)

    def _multiply(self, rows: torch.Tensor, into: torch.Tensor) -> None:
        digits, scales = split_in_digits(rows)
        product = torch.empty((2 * len(rows), self.packed.n), dtype=rows.dtype)
        ops.onednn_scaled_mm(self.packed, digits, product, scales, None, None, None)
        torch.add(product[: len(rows)], product[len(rows) :], out=into)


def split_in_digits(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first digits of all rows, then the second; and the scale of each of these rows."""
    num_rows, width = rows.shape
    digits = torch.empty((2 * num_rows, width), dtype=torch.int8)
    scales = torch.empty((2 * num_rows, 1))
    first, second = digits[:num_rows], digits[num_rows:]
    first_scale, second_scale = scales[:num_rows], scales[num_rows:]
    # Not `ops.onednn_scaled_int8_quant`, which would put the two into tensors of their own.
    quantize = torch.ops._C.dynamic_scaled_int8_quant  # noqa: SLF001
    quantize(first, rows, first_scale, None)
    # In FP32, whatever the type of the rows: the rest is small beside them.
    rest = torch.addcmul(rows.float(), first.float(), first_scale, value=-1)
    quantize(second, rest, second_scale, None)
    return digits, scales


class OneDigitProduct:
    """The kernel that vLLM has for W8A8 on this device."""

    def __init__(self, layer: torch.nn.Module) -> None:
        layer.input_scale = layer.input_zero_point = layer.azp_adj = None
        self._kernel = init_int8_linear_kernel(
            is_channelwise=True,
            is_static_input_scheme=False,
            input_symmetric=True,
            module_name=type(self).__name__,
        )
        self._kernel.process_weights_after_loading(layer)

    def __call__(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        product: torch.Tensor = self._kernel.apply_weights(layer, x, bias)
        return product
