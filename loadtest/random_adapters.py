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


def make_loras(
    model: Path, folder: Path, count: int, rank: int, **options: str | bool
) -> list[Path]:
    """`count` LoRAs on the attention's q and v, each in a folder below `folder`."""
    fields = {"target_modules": ["q_proj", "v_proj"], **options}
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=rank, **fields)
    return _with_weights(_template(model, config, folder / "template"), folder, "lora", count)


def make_soft_prompts(model: Path, folder: Path, count: int, num_virtual_tokens: int) -> list[Path]:
    """`count` soft prompts, each in a folder below `folder`."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=num_virtual_tokens)
    return _with_weights(_template(model, config, folder / "template"), folder, "prompt", count)


def _template(model: Path, config: LoraConfig | PromptTuningConfig, folder: Path) -> Path:
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def _with_weights(template: Path, folder: Path, name: str, count: int) -> list[Path]:
    tensors = load_file(template / WEIGHTS_FILE)
    made = [folder / f"{name}-{seed}" for seed in range(count)]
    for seed, each in enumerate(made):
        each.mkdir()
        shutil.copy(template / CONFIG_FILE, each)
        generator = torch.Generator().manual_seed(seed)
        noise = {
            key: SCALE * torch.randn(each.shape, generator=generator)
            for key, each in tensors.items()
        }
        # A magnitude is near the length of the base model's row.
        weights = {
            key: tensors[key] * (1 + each) if key.endswith("magnitude_vector") else each
            for key, each in noise.items()
        }
        save_file(weights, each / WEIGHTS_FILE)
    shutil.rmtree(template)
    return made
