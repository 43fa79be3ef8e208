"""Adapters of the right shapes with random weights: they say nonsense, and cost what others do.

PEFT makes the first; the others are its folder with other weights.
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

# Small enough for any text to go on, large enough to change it.
SCALE = 0.02


def make_loras(model: Path, folder: Path, count: int, rank: int) -> list[Path]:
    """`count` LoRAs on the attention's q and v, each in a folder below `folder`."""
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"]
    )
    return _with_weights(_template(model, config, folder / "template"), folder, "lora", count)


def make_soft_prompts(model: Path, folder: Path, count: int, num_virtual_tokens: int) -> list[Path]:
    """`count` soft prompts, each in a folder below `folder`."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=num_virtual_tokens)
    return _with_weights(_template(model, config, folder / "template"), folder, "prompt", count)


def _template(model: Path, config: LoraConfig | PromptTuningConfig, folder: Path) -> Path:
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def _with_weights(template: Path, folder: Path, name: str, count: int) -> list[Path]:
    shapes = {key: each.shape for key, each in load_file(template / WEIGHTS_FILE).items()}
    made = [folder / f"{name}-{seed}" for seed in range(count)]
    for seed, each in enumerate(made):
        each.mkdir()
        shutil.copy(template / CONFIG_FILE, each)
        generator = torch.Generator().manual_seed(seed)
        weights = {
            key: SCALE * torch.randn(shape, generator=generator) for key, shape in shapes.items()
        }
        save_file(weights, each / WEIGHTS_FILE)
    shutil.rmtree(template)
    return made
