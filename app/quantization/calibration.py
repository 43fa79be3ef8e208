"""Quantize a model layer by layer, each on the inputs that the quantized layers before it give.

Only the integers change: what goes into a linear layer and comes out of it means the same as before
(nothing is smoothed or rotated), so that adapters trained on the original model still fit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import Progress
from torch import nn

from app.quantization.gptq import InputStatistics, quantize

TEXT = Path(__file__).with_name("calibration.txt")
SEQUENCE_LENGTH = 512
NUM_STEPS = 255


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """INT8 weights (out, in) and the scale of each output channel (out, 1)."""

    weight: torch.Tensor
    scale: torch.Tensor


def calibrate(source: Path, progress: Progress) -> dict[str, QuantizedLinear]:
    """The decoder's linear layers of the model in a folder, quantized."""
    transformers.utils.logging.disable_progress_bar()
    loading = progress.add_task("Loading the model", total=None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    progress.update(loading, total=1, completed=1)
    quantizing = progress.add_task("Quantizing", total=len(model.model.layers))
    layers: dict[str, QuantizedLinear] = quantize_layers(
        model.eval(), calibration_tokens(tokenizer), lambda: progress.advance(quantizing)
    )
    return layers


def calibration_tokens(tokenizer: Any) -> list[torch.Tensor]:
    """The calibration text, in sequences of shape (1, length)."""
    token_ids = tokenizer(TEXT.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    return [
        torch.tensor([token_ids[start : start + SEQUENCE_LENGTH]])
        for start in range(0, len(token_ids), SEQUENCE_LENGTH)
    ]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def quantize_layers(
    model: nn.Module, sequences: list[torch.Tensor], advance: Callable[[], None]
) -> dict[str, QuantizedLinear]:
    """Every linear layer of the decoder by its name, quantized; in `model` too, as floats.

    `advance` is called after each decoder layer.
    """
    quantized = {}
    states, options = _before_the_first_layer(model, sequences)
    for index, layer in enumerate(model.model.layers):
        statistics = {name: InputStatistics(linear.in_features) for name, linear in linears(layer)}
        with _as_served(layer, statistics):
            _run(layer, states, options)
        for name, linear in linears(layer):
            made = QuantizedLinear(*quantize(linear.weight.float(), statistics[name].hessian()))
            linear.weight.copy_(made.weight * made.scale)
            quantized[f"model.layers.{index}.{name}"] = made
        with _as_served(layer, {}):
            states = _run(layer, states, options)
        advance()
    return quantized


def linears(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers below a module, by their names in it."""
    return [(name, m) for name, m in layer.named_modules() if isinstance(m, nn.Linear)]


class _FirstLayerReached(Exception):
    """Ends a forward pass: only what the first layer is called with is wanted."""


def _before_the_first_layer(
    model: nn.Module, sequences: list[torch.Tensor]
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """The hidden states that enter the first layer, and what else every layer is called with."""
    states: list[torch.Tensor] = []
    options: list[dict[str, Any]] = []

    def stop(_: nn.Module, arguments: tuple[torch.Tensor, ...], keywords: dict[str, Any]) -> None:
        states.append(arguments[0])
        options.append(keywords)
        raise _FirstLayerReached

    handle = model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    for sequence in sequences:
        with suppress(_FirstLayerReached):
            model(sequence, use_cache=False)
    handle.remove()
    return states, options


def _run(
    layer: nn.Module, states: list[torch.Tensor], options: list[dict[str, Any]]
) -> list[torch.Tensor]:
    return [layer(state, **each) for state, each in zip(states, options, strict=True)]


@contextmanager
def _as_served(layer: nn.Module, statistics: dict[str, InputStatistics]) -> Iterator[None]:
    """Round the inputs of all linear layers as W8A8 does, and add them to the statistics."""

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor]]:
        def round_inputs(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            inputs = round_activations(arguments[0])
            if name in statistics:
                statistics[name].add(inputs)
            return (inputs,)

        return round_inputs

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears(layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def round_activations(inputs: torch.Tensor) -> torch.Tensor:
    """Each token's values as 255 steps between its smallest and its largest."""
    low, high = inputs.amin(dim=-1, keepdim=True), inputs.amax(dim=-1, keepdim=True)
    scale = ((high - low) / NUM_STEPS).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (low / scale).round_()
    return ((inputs / scale).round_() - zero).clamp_(0, NUM_STEPS).add_(zero).mul_(scale)
