"""Adapters of the types that are served as what they are equal to, made by PEFT itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file

from softserve.schema.adapters import WEIGHTS_FILE

SOME = ["q_proj", "v_proj", "down_proj"]
# In the default model's vocabulary: " a", " of", " is" and ":".
TOKENS = [282, 253, 314, 42]


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


TYPES: dict[str, Made] = {
    "adalora": Made(adalora, 0.3),
}


def tokens() -> Any:
    return TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=TOKENS)


def lora_and_tokens() -> Any:
    """Between them: another rank, and a scaling that is not 1."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        rank_pattern={"v_proj": 3},
        target_modules=["q_proj", "v_proj"],
        trainable_token_indices=TOKENS,
    )


def head_and_tokens() -> Any:
    """The head has both, where it is tied to the embedding."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        use_rslora=True,
        target_modules=["q_proj", "lm_head"],
        trainable_token_indices={"embed_tokens": TOKENS},
    )


def tokens_of_both() -> Any:
    """The embedding and the head have rows of different tokens, though they may be tied."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["o_proj"],
        trainable_token_indices={"embed_tokens": TOKENS, "lm_head": TOKENS[1:]},
    )


def tokens_of_the_head() -> Any:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["o_proj"],
        trainable_token_indices={"lm_head": TOKENS},
    )


WITH_TOKENS: dict[str, Made] = {
    "tokens": Made(tokens, 0.2),
    "lora-and-tokens": Made(lora_and_tokens, 0.1),
    "head-and-tokens": Made(head_and_tokens, 0.1),
    "tokens-of-both": Made(tokens_of_both, 0.1),
    "tokens-of-the-head": Made(tokens_of_the_head, 0.1),
}


def make(base: Any, name: str, folder: Path) -> Any:
    """PEFT's model with a random adapter of a type on `base`, in FP32; it is saved in `folder`.

    `unload()` gives the base model back as it was.
    """
    made = (TYPES | WITH_TOKENS)[name]
    model = get_peft_model(base, made.config()).eval()
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = made.std * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    made.finish(folder)
    return model


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors that were saved."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
