"""Models that cannot have every feature are served without it, and say why."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from rich.progress import Progress
from transformers import AutoConfig, AutoModelForCausalLM

from app.engine.model.default import default_model
from app.settings import Settings
from tests.server.process import running
from tests.server.requests import generate, put_adapter

# PyTorch's own, when transformers imports a part of it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

START = ("--precision", "fp32", "--context-window", "256", "--kv-cache-gib", "0.1")
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 512,
}


def make_model(folder: Path, model_type: str, **config: Any) -> Path:
    """A tiny random model with the tokenizer of the default model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **SHAPE, **config), dtype=torch.float32
    )
    model.save_pretrained(folder)
    for file in default_model(Settings().cache_dir, Progress(disable=True)).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def save_lora(folder: Path, base: Path) -> Path:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def save_soft_prompt(folder: Path, base: Path) -> Path:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """A client of a server of this model, which is ready."""
    with (
        running(*START, "--model", str(folder)) as server,
        server.wait_until_ready().client() as it,
    ):
        yield it


def test_a_mixture_of_experts_on_a_cpu_has_no_loras(tmp_path: Path) -> None:
    experts = {"intermediate_size": 128, "num_key_value_heads": 2, "num_local_experts": 4}
    folder = make_model(tmp_path / "model", "mixtral", **experts, sliding_window=None)
    lora = save_lora(tmp_path / "lora", folder)
    soft_prompt = save_soft_prompt(tmp_path / "soft-prompt", folder)

    with served(folder) as client:
        answer = generate(client, prompt="Once upon a time", max_new_tokens=4, logprobs=1)
        refused = put_adapter(client, "lora", lora)
        added = put_adapter(client, "soft", soft_prompt)
        softly = generate(client, prompt="Once", soft_prompt="soft", max_new_tokens=4)

    assert answer["usage"]["completion_tokens"] == 4
    assert refused.status_code == 422
    assert refused.json()["error"]["message"].endswith(
        "vLLM runs no LoRA on a mixture of experts (MixtralForCausalLM) on a CPU"
    )
    assert added.status_code == 200
    assert softly["usage"]["virtual_tokens"] == 4


def test_embeddings_narrower_than_hidden_states_take_no_soft_prompts(tmp_path: Path) -> None:
    narrow = {"word_embed_proj_dim": 32, "ffn_dim": 128, "do_layer_norm_before": False}
    folder = make_model(tmp_path / "model", "opt", **narrow)
    lora = save_lora(tmp_path / "lora", folder)
    soft_prompt = save_soft_prompt(tmp_path / "soft-prompt", folder)

    with served(folder) as client:
        answer = generate(client, prompt="Once upon a time", max_new_tokens=4, logprobs=1)
        refused = put_adapter(client, "soft", soft_prompt)
        added = put_adapter(client, "lora", lora)
        adapted = generate(client, prompt="Once", adapter="lora", max_new_tokens=4)

    assert answer["usage"]["completion_tokens"] == 4
    assert refused.status_code == 422
    assert refused.json()["error"]["message"].endswith(
        f"the embeddings of {folder} are not as wide as its hidden states"
    )
    assert added.status_code == 200
    assert adapted["usage"]["completion_tokens"] == 4
