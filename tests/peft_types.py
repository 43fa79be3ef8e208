"""Adapters of the types that are served as what they are equal to, made by PEFT itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from softserve.schema.adapters import WEIGHTS_FILE

SOME = ["q_proj", "v_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class Made:
    """How PEFT makes an adapter of a type, and how far its numbers are from zero.

    `std` is large enough that the base model's text changes, and `finish` changes what was saved.
    """

    config: Callable[[], Any]
    std: float
    finish: Callable[[Path], None] = lambda folder: None


def adalora() -> Any:
    return AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=6, target_r=3, total_step=10, target_modules=SOME
    )


def dora() -> Any:
    """Every kind of linear module, of two ranks."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=6,
        lora_alpha=12,
        use_dora=True,
        target_modules="all-linear",
        rank_pattern={"down_proj": 3},
    )


# Served as the LoRA that each is equal to.
TYPES: dict[str, Made] = {
    "adalora": Made(adalora, 0.3),
}
# Served as they are.
OTHERS: dict[str, Made] = {
    "dora": Made(dora, 0.01),
}


def make(base: Any, name: str, folder: Path) -> Any:
    """PEFT's model with a random adapter of a type on `base`, in FP32; it is saved in `folder`.

    `unload()` gives the base model back as it was.
    """
    made = (TYPES | OTHERS)[name]
    model = get_peft_model(base, made.config()).eval()
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = made.std * torch.randn(parameter.shape, generator=generator)
            # A magnitude begins as the length of a row, and is trained to something near it.
            is_magnitude = parameter.dim() == 1
            parameter.data = parameter.data * (1 + 10 * noise) if is_magnitude else noise
    model.save_pretrained(folder)
    made.finish(folder)
    return model


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors that were saved."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
