"""Tiny random models, whose servers start in seconds and generate fast."""

import shutil
from pathlib import Path
from typing import Any

from app.engine.model.default import default_model
from app.engine.protocol import ModuleShape
from app.settings import Settings

# Of a server: it needs little memory.
SMALL = ("--context-window", "4096", "--kv-cache-gib", "0.1")
HIDDEN_SIZE = 64
SHAPE = {
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 4096,
}
LLAMA = {"intermediate_size": 128, "num_key_value_heads": 2}
# Of the model that `make_llama` makes.
LLAMA_MODULES = {
    f"model.layers.{layer}.self_attn.{name}": ModuleShape("linear", HIDDEN_SIZE, HIDDEN_SIZE)
    for layer in range(2)
    for name in ("q_proj", "v_proj")
}


def make_llama(folder: Path) -> Path:
    """One that takes LoRAs and soft prompts."""
    return make_model(folder, "llama", **LLAMA)


def make_model(folder: Path, model_type: str, **config: Any) -> Path:
    """A model with the tokenizer of the default model."""
    import torch
    from rich.progress import Progress
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **SHAPE, **config), dtype=torch.float32
    )
    model.save_pretrained(folder)
    for file in default_model(Settings().cache_dir, Progress(disable=True)).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder
