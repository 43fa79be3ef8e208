"""Adapters for one form of a model on the other, by vLLM and by PEFT on the form they are for.

    python -m tests.server.fused_projections FOLDER

A program of its own, because vLLM keeps a process to itself: the engine core and its worker run in
this one, one model after the other. It prints the token ids of every case as JSON, a line a model.
"""

import json
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from app.adapters.staging import stage_folder
from app.adapters.validation import validate
from app.engine.protocol import Architecture
from app.engine.vllm.architecture import describe_architecture
from app.engine.vllm.device import this_device
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.engine.vllm.loras import FIRST_ID
from app.settings import Settings
from softserve.schema.server import Limits
from tests.server.architectures import register_made_classes

PROMPTS = [[5, 9, 33, 77, 120, 4], [300, 22, 8]]
NUM_TOKENS = 16
# By name: the form that it is trained on, and the modules.
ADAPTERS: dict[str, tuple[str, list[str]]] = {
    "attention of llama": ("llama", ["q_proj", "v_proj"]),
    "all of llama": (
        "llama",
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "attention of phi3": ("phi3", ["qkv_proj"]),
    "all of phi3": ("phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "DoRA of llama": ("llama", ["q_proj", "k_proj", "v_proj", "down_proj"]),
    "DoRA of phi3": ("phi3", ["qkv_proj", "gate_up_proj"]),
}
MODEL_TYPES = ("llama", "phi3")
# By adapter, None for the base model alone: the token ids that follow each prompt.
Answers = dict[str | None, list[list[int]]]


def main(folder: Path) -> None:
    """Print `["MODEL_TYPE", {adapter: [by vLLM, by PEFT]}]` for each form of the model."""
    settings = Settings(
        cache_dir=folder / "cache",
        precision="fp32",
        kv_cache_gib=0.1,
        context_window=256,
        max_lora_rank=12,
    )
    prepare_environment(settings)
    prepare_cpu_environment(eager=True)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    register_made_classes(MODEL_TYPES)
    expected = by_peft(folder)
    for model_type in MODEL_TYPES:
        got = by_vllm(folder, model_type, settings)
        compared = {str(name): [got[name], expected[name]] for name in expected}
        print(json.dumps([model_type, compared]), flush=True)  # noqa: T201


def by_peft(folder: Path) -> Answers:
    """Make the models and their adapters below `folder`, and generate with them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from tests.fused_models import SHAPE, make_models

    def complete(model: Any, prompt: list[int]) -> list[int]:
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                min_new_tokens=NUM_TOKENS,
                max_new_tokens=NUM_TOKENS,
            )
        token_ids: list[int] = output[0, len(prompt) :].tolist()
        return token_ids

    models = make_models()
    words = WordLevel({f"t{i}": i for i in range(SHAPE["vocab_size"])})
    for model_type, model in models.items():
        # vLLM asks for a tokenizer.
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
        tokenizer.save_pretrained(folder / model_type)
        model.save_pretrained(folder / model_type)
    answers: Answers = {None: [complete(models["llama"], prompt) for prompt in PROMPTS]}
    for name, (model_type, modules) in ADAPTERS.items():
        torch.manual_seed(1)
        is_dora = name.startswith("DoRA")
        config = LoraConfig(
            "CAUSAL_LM", r=4, lora_alpha=8, target_modules=modules, use_dora=is_dora
        )
        model = get_peft_model(deepcopy(models[model_type]), config).eval()
        for parameter_name, weights in model.named_parameters():
            # PEFT begins with zeros in these.
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(weights, std=0.1)
            elif "lora_magnitude" in parameter_name:
                weights.data *= 0.8 + 0.4 * torch.rand(weights.shape)
        model.save_pretrained(folder / "sent" / name)
        answers[name] = [complete(model, prompt) for prompt in PROMPTS]
    return answers


def by_vllm(folder: Path, model_type: str, settings: Settings) -> Answers:
    """Every adapter, as it is admitted for this form of the model, in one batch."""
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.inputs.engine import tokens_input
    from vllm.lora.request import LoRARequest

    arguments = engine_arguments(folder / model_type, settings, this_device())
    arguments |= {"distributed_executor_backend": "uni", "max_loras": len(ADAPTERS)}
    del arguments["max_logprobs"], arguments["shutdown_timeout"]
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    architecture = describe_architecture(["tiny"], engine.vllm_config, settings)
    params = SamplingParams(
        temperature=0.0,
        min_tokens=NUM_TOKENS,
        max_tokens=NUM_TOKENS,
        detokenize=False,
    )
    requests: dict[str, tuple[str | None, int]] = {}
    for number, name in enumerate((None, *ADAPTERS)):
        lora = None
        if name is not None:
            served = admit(folder / "sent" / name, folder / f"on {model_type}" / name, architecture)
            lora = LoRARequest(name, FIRST_ID + number, str(served))
        for index, token_ids in enumerate(PROMPTS):
            requests[f"{name} {index}"] = name, index
            engine.add_request(
                f"{name} {index}", tokens_input(token_ids), params, lora_request=lora
            )
    answers: Answers = {name: [[] for _ in PROMPTS] for name in (None, *ADAPTERS)}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                name, index = requests[output.request_id]
                answers[name][index] = list(output.outputs[0].token_ids)
    del engine
    cleanup_dist_env_and_memory()
    return answers


def admit(sent: Path, into: Path, architecture: Architecture) -> Path:
    """What the store would hold of it."""
    into.mkdir(parents=True)
    stage_folder(sent, into, max_bytes=1 << 20)
    validate(into, architecture, Limits(max_lora_rank=12), force=True)
    return into


if __name__ == "__main__":
    main(Path(sys.argv[1]))
