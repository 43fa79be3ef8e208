"""Loads tiny models on vLLM in each precision; test_weights.py starts it with a folder to work in.

It writes {model: {precision: {name: figure}}} to stdout.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader import get_model
from vllm.utils.torch_utils import set_default_torch_dtype

from app.engine.plugin.memory import weight_bytes
from app.engine.vllm.device import cpu_has_int8
from app.engine.vllm.engine import engine_config
from app.engine.vllm.environment import prepare_environment
from app.engine.vllm.unloaded import ONE_PROCESS, alone
from app.settings import Settings

# What is not in a checkpoint, as the angles of positions, is next to nothing.
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 16,
}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "untied": {"model_type": "llama", "tie_word_embeddings": False},
    # Of numbers that are not BF16's.
    "of FP32": {"model_type": "llama", "tie_word_embeddings": True, "dtype": torch.float32},
    # It multiplies with its embedding.
    "without a head": {"model_type": "cohere"},
}
PRECISIONS = {
    "tied": ["fp32", "fp16", "bf16", "int8"],
    "untied": ["bf16", "int8"],
    "of FP32": ["fp32"],
    "without a head": ["bf16"],
}
BY_VLLM = "bf16 of vLLM alone"
REPLACED = ["process_weights_after_loading", "embedding", "apply"]
IDS = torch.tensor([3, 5, 2047, 0])


def main(folder: Path) -> None:
    stock = methods(REPLACED)
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for name, config in MODELS.items():
        path = make_model(folder / name, **SHAPE, **config)
        measured[name] = {
            precision: measure(path, precision)
            for precision in PRECISIONS[name]
            if precision != "int8" or cpu_has_int8()
        }
    with replaced(stock):
        for name in ("tied", "untied"):
            measured[name][BY_VLLM] = measure(folder / name, "bf16")
    sys.stdout.write(json.dumps(measured) + "\n")


@contextmanager
def replaced(by: dict[str, Any]) -> Iterator[None]:
    ours = methods(by)
    set_methods(by)
    yield
    set_methods(ours)


def methods(names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(UnquantizedEmbeddingMethod, name) for name in names}


def set_methods(by: dict[str, Any]) -> None:
    for name, method in by.items():
        setattr(UnquantizedEmbeddingMethod, name, method)


def make_model(
    folder: Path, model_type: str, dtype: torch.dtype = torch.bfloat16, **config: Any
) -> Path:
    torch.manual_seed(0)
    whole = AutoConfig.for_model(model_type, **config)
    AutoModelForCausalLM.from_config(whole, dtype=dtype).save_pretrained(folder)
    return folder


def measure(folder: Path, precision: str) -> dict[str, float]:
    settings = Settings(precision=precision, max_loras=0, max_virtual_tokens=0, context_window=16)
    config = engine_config(folder, settings, skip_tokenizer_init=True, **ONE_PROCESS)
    dtype = config.model_config.dtype
    with alone(config), set_default_torch_dtype(dtype), torch.inference_mode():
        model = get_model(vllm_config=config)
        x = torch.randn(len(IDS), SHAPE["hidden_size"]).to(dtype)
        logits = model.compute_logits(x)
        rows = model.model.embed_tokens(IDS)
        linear, other = weight_bytes(model)
    stored = load_file(folder / "model.safetensors")
    embedding = stored["model.embed_tokens.weight"].to(dtype)
    head = stored.get("lm_head.weight", embedding).float()
    exact = x.float() @ head.T * getattr(config.model_config.hf_config, "logit_scale", 1)
    in_linears = sum(t.numel() for name, t in stored.items() if name.endswith("_proj.weight"))
    in_vocabulary = sum(t.numel() for t in stored.values() if len(t) == SHAPE["vocab_size"])
    return {
        "bytes": linear + other,
        "in linear layers": in_linears,
        "in the embedding": embedding.numel(),
        "elsewhere": sum(t.numel() for t in stored.values()) - in_linears - in_vocabulary,
        "error of logits": float((logits.float() - exact).abs().max() / exact.abs().max()),
        "error of rows": float((rows - embedding[IDS]).abs().max()),
    }


if __name__ == "__main__":
    prepare_environment(Settings())
    # As vLLM's runner on a CPU has it.
    torch.accelerator.empty_cache = lambda: None
    main(Path(sys.argv[1]))
