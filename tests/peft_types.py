"""Adapters of the types that are served as what they are equal to, made by PEFT itself."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    DeloraConfig,
    GraloraConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    PveraConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

SOME = ["q_proj", "v_proj", "down_proj"]
# In the default model's vocabulary: " a", " of", " is" and ":".
TOKENS = [282, 253, 314, 42]


@dataclass(frozen=True, slots=True)
class Made:
    """How PEFT makes an adapter of a type, and how far its numbers are from zero.

    `std` is large enough that the base model's text changes.
    """

    config: Callable[[], Any]
    std: float


def adalora() -> Any:
    return AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=6, target_r=3, total_step=10, target_modules=SOME
    )


def dora(**options: Any) -> Any:
    """Every kind of linear module, of two ranks."""
    return LoraConfig(
        **options,
        task_type="CAUSAL_LM",
        r=6,
        lora_alpha=12,
        use_dora=True,
        target_modules="all-linear",
        rank_pattern={"down_proj": 3},
    )


def miss(**options: Any) -> Any:
    # Divides neither the tiny model's sizes nor the default model's.
    return MissConfig(**{"task_type": "CAUSAL_LM", "r": 10, "target_modules": SOME} | options)


def vera(**options: Any) -> Any:
    return VeraConfig(task_type="CAUSAL_LM", r=8, target_modules=SOME, **options)


def loha() -> Any:
    return LoHaConfig(
        task_type="CAUSAL_LM",
        r=2,
        alpha=6,
        rank_pattern={"down_proj": 3},
        alpha_pattern={r"0\.self_attn\.[qv]_proj": 2.5},
        target_modules=SOME,
    )


def lokr(**options: Any) -> Any:
    some = {"task_type": "CAUSAL_LM", "r": 3, "decompose_factor": 4, "target_modules": SOME}
    return LoKrConfig(**some | options)


def vblora(**options: Any) -> Any:
    return VBLoRAConfig(
        task_type="CAUSAL_LM",
        r=4,
        num_vectors=20,
        vector_length=32,
        target_modules=SOME,
        **options,
    )


def delora() -> Any:
    return DeloraConfig(task_type="CAUSAL_LM", r=4, rank_pattern={"v_proj": 2}, target_modules=SOME)


def gralora(**options: Any) -> Any:
    return GraloraConfig(**{"task_type": "CAUSAL_LM", "r": 6, "target_modules": SOME} | options)


def pvera(**options: Any) -> Any:
    return PveraConfig(task_type="CAUSAL_LM", r=8, target_modules=SOME, **options)


# One of each type, which the real engine runs.
TYPES: dict[str, Made] = {
    "adalora": Made(adalora, 0.3),
    "miss": Made(miss, 0.02),
    "vera": Made(vera, 1.0),
    "loha": Made(loha, 0.25),
    "lokr": Made(lokr, 0.2),
    "vblora": Made(vblora, 0.25),
    "delora": Made(delora, 4.0),
    "gralora": Made(gralora, 0.04),
    "pvera": Made(pvera, 1.0),
}
# Served as they are.
OTHERS: dict[str, Made] = {
    "dora": Made(dora, 0.01),
    "dora-and-tokens": Made(partial(dora, trainable_token_indices=TOKENS), 0.01),
}
# Their options.
VARIANTS: dict[str, Made] = {
    "miss-random": Made(partial(miss, init_weights=False), 0.02),
    "miss-mini": Made(partial(miss, init_weights="mini", mini_r=4), 0.02),
    "miss-mini-wide": Made(partial(miss, init_weights="mini", mini_r=16), 0.02),
    "miss-higher-than-wide": Made(partial(miss, r=40, target_modules=["v_proj"]), 0.02),
    "vblora-topk": Made(partial(vblora, save_only_topk_weights=True, topk=3), 0.5),
    "gralora-hybrid": Made(partial(gralora, hybrid_r=3, gralora_k=2), 0.2),
    "gralora-4": Made(partial(gralora, r=8, gralora_k=4), 0.2),
    "lokr-whole": Made(partial(lokr, decompose_factor=32, target_modules=["v_proj"]), 0.2),
    "lokr-both": Made(partial(lokr, decompose_factor=8, decompose_both=True), 0.2),
    "lokr-r-above-side": Made(partial(lokr, r=6, decompose_factor=2), 0.2),
    "lokr-by-module": Made(
        partial(lokr, rank_pattern={"v_proj": 1}, alpha_pattern={"down_proj": 3.5}), 0.2
    ),
    # PEFT warns that it will make the projections again.
    "vera-by-key": Made(partial(vera, save_projection=False, projection_prng_key=5), 1.0),
    "pvera-by-key": Made(partial(pvera, save_projection=False, projection_prng_key=5), 1.0),
}
CONVERTED = TYPES | VARIANTS


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
    made = (CONVERTED | OTHERS | WITH_TOKENS)[name]
    model = get_peft_model(base, made.config()).eval()
    generator = torch.Generator().manual_seed(11)
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = made.std * torch.randn(parameter.shape, generator=generator)
            # A magnitude begins as the length of a row, and is trained to something near it.
            is_magnitude = "lora_magnitude_vector" in parameter_name
            parameter.data = parameter.data * (1 + 10 * noise) if is_magnitude else noise
    model.save_pretrained(folder)
    return model


def change_files(
    folder: Path, fields: Mapping[str, Any], change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    """Change what was saved: these fields of its configuration, and its tensors."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    (folder / CONFIG_FILE).write_text(json.dumps(config | fields))
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
