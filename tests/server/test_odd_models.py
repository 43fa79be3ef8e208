"""Models that cannot have every feature are served without it, and say why."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.server.process import running
from tests.server.requests import generate, put_adapter
from tests.server.tiny_models import make_model

# PyTorch's own, when transformers imports a part of it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

START = ("--context-window", "256", "--kv-cache-gib", "0.1")


def save_lora(folder: Path, base: Path, target_modules: list[str] | None = None) -> PeftModel:
    """A LoRA that changes what the model says, saved, and the model with it."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=target_modules or ["q_proj", "v_proj"]
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    model.save_pretrained(folder)
    return model.eval()


def save_soft_prompt(folder: Path, base: Path) -> Path:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[httpx.Client]:
    """A client of a server of this model, which is ready."""
    with (
        running(*START, "--model", str(folder), *flags) as server,
        server.wait_until_ready().client() as it,
    ):
        yield it


def test_a_mixture_of_experts_on_a_cpu_has_no_loras(tmp_path: Path) -> None:
    experts = {"intermediate_size": 128, "num_key_value_heads": 2, "num_local_experts": 4}
    folder = make_model(tmp_path / "model", "mixtral", **experts, sliding_window=None)
    save_lora(lora := tmp_path / "lora", folder)
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
    save_lora(lora := tmp_path / "lora", folder)
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


# PEFT's own, on Conv1D.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_vllms_gpt2_has_loras_here(tmp_path: Path) -> None:
    """Without soft prompts, of which its class is told in the same place."""
    folder = make_model(tmp_path / "model", "gpt2")
    model = save_lora(lora := tmp_path / "lora", folder, ["c_attn", "c_proj", "c_fc"])
    save_lora(positions := tmp_path / "positions", folder, ["wpe"])
    prompt = {"prompt": "Once upon a time", "max_new_tokens": 8, "return_token_ids": True}

    with served(folder, "--max-virtual-tokens", "0") as client:
        base = generate(client, **prompt)
        added = put_adapter(client, "lora", lora)
        adapted = generate(client, **prompt, adapter="lora")
        refused = put_adapter(client, "positions", positions)

    assert added.status_code == 200, added.text
    inputs = AutoTokenizer.from_pretrained(folder)(prompt["prompt"], return_tensors="pt")
    inputs |= {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(**inputs)[0, -8:].tolist()
    assert adapted["completions"][0]["token_ids"] == expected
    assert base["completions"][0]["token_ids"] != expected
    assert refused.status_code == 422
    assert "module 'transformer.wpe', to which the engine adds no LoRA" in refused.text
