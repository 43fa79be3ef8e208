"""Tiny random models of many architectures, with adapters, by vLLM and by transformers and PEFT.

    python -m tests.server.architectures FOLDER

A program of its own, because vLLM keeps a process to itself: the engine core and its worker run in
this one, one model after the other. It prints the token ids of every case as JSON, a line a model.
"""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

from app.engine.vllm.device import cpu_has_int8, this_device
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.engine.vllm.loras import FIRST_ID
from app.engine.vllm.soft_prompts import SoftPrompts
from app.engine.vllm.unloaded import describe_unloaded
from app.settings import Precision, Settings
from softserve.schema.adapters import CONFIG_FILE

TOKENS = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GATED = SHAPE | {"intermediate_size": 256, "num_key_value_heads": 2, "head_dim": 32}
GPT = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256}
FALCON = SHAPE | {"model_type": "falcon"}
QV = ["q_proj", "v_proj"]
WITH_EMBEDDINGS = [*QV, "embed_tokens", "lm_head"]
ALL_LINEAR = "all-linear"
# By model_type, or a name with the model_type in the config: the config, and the modules that a
# LoRA changes.
ARCHITECTURES: dict[str, tuple[dict[str, Any], list[str] | str]] = {
    "gpt2": (GPT, ["c_attn", "c_proj", "c_fc", "wte"]),
    "opt": (SHAPE | {"ffn_dim": 256, "word_embed_proj_dim": 128}, QV),
    "bloom": ({"hidden_size": 128, "n_layer": 2, "n_head": 4}, ALL_LINEAR),
    "falcon with one key-value head": (FALCON, ALL_LINEAR),
    "falcon with some key-value heads": (
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        ALL_LINEAR,
    ),
    "falcon with all key-value heads": (
        FALCON | {"multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
        ALL_LINEAR,
    ),
    "gptj": (GPT | {"rotary_dim": 16}, ALL_LINEAR),
    "stablelm": (
        SHAPE | {"intermediate_size": 256, "num_key_value_heads": 2, "use_qkv_bias": True},
        [*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    ),
    "hrm_text": (SHAPE | {"intermediate_size": 256, "head_dim": 32}, ALL_LINEAR),
    "llama": (GATED, QV),
    "qwen2": (GATED, WITH_EMBEDDINGS),
    "qwen3": (GATED, QV),
    "gemma": (GATED, WITH_EMBEDDINGS),
    "gemma3_text": (GATED | {"query_pre_attn_scalar": 32}, QV),
    "mistral": (GATED | {"sliding_window": None}, WITH_EMBEDDINGS),
}
# Their LoRAs are DoRAs: rows in another order, biases, and two that also run in INT8.
WITH_DORA = ("falcon with one key-value head", "opt", "llama")
# It takes none.
NO_SOFT_PROMPTS = ("hrm_text",)
# It runs its layers many times over, in which rounding errors would grow with larger weights.
STD = {"hrm_text": 0.1}
# Linear layers under other names, with biases, and output heads that are the embedding's weights.
IN_INT8 = ("gpt2", "opt", "bloom", "llama", "qwen3", "gemma")
RUNS: list[tuple[str, Precision]] = [
    *((name, "fp32") for name in ARCHITECTURES),
    *((name, "int8") for name in IN_INT8),
]
PROMPTS = [[5, 9, 33, 77, 120, 4], [300, 22, 8]]
NUM_TOKENS = 16
NUM_VIRTUAL_TOKENS = 20
SOFT_PROMPT = "0" * 64
# Which prompt, and whether with a LoRA and a soft prompt.
Case = tuple[int, bool, bool]


def main(folder: Path) -> None:
    """Print `["NAME in PRECISION", {case: [by vLLM, by transformers]}]` for each.

    And `["NAME in PRECISION: unadapted", [as the engine says, as is said without it]]`.
    """
    settings = Settings(
        cache_dir=folder / "cache",
        kv_cache_gib=0.1,
        context_window=256,
        max_lora_rank=8,
    )
    prepare_environment(settings)
    prepare_cpu_environment(eager=True)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    register_made_classes(
        {config.get("model_type", name) for name, (config, _) in ARCHITECTURES.items()}
    )
    for name, precision in RUNS:
        if precision == "int8" and not cpu_has_int8():
            continue
        run = f"{name} in {precision}"
        expected = by_transformers(name, precision, folder / run)
        as_asked = settings.model_copy(
            update={"precision": precision, "model": str(folder / run / "model")}
        )
        described = describe_unloaded(as_asked).architecture
        got, adapted = by_vllm(folder / run, as_asked, cases_of(name), list(described.modules))
        unadapted = [sorted(described.modules.keys() - adapted), sorted(described.unadapted)]
        print(json.dumps([f"{run}: unadapted", unadapted]), flush=True)  # noqa: T201
        compared = {str(case): [got[case], expected[case]] for case in expected}
        print(json.dumps([run, compared]), flush=True)  # noqa: T201


def register_made_classes(model_types: Iterable[str]) -> None:
    """Make the classes in this process: vLLM would start one for each, to look at it, for 15 s."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    for model_type in model_types:
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        ModelRegistry.register_model(
            architecture, ModelRegistry.models[architecture].load_model_cls()
        )


def cases_of(name: str) -> list[Case]:
    soft_prompts = (False,) if name in NO_SOFT_PROMPTS else (False, True)
    return list(product(range(len(PROMPTS)), (False, True), soft_prompts))


def by_transformers(name: str, precision: Precision, folder: Path) -> dict[Case, list[int]]:
    """Make the model and its adapters below `folder`, and generate with them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    model: Any = make_model(name, folder / "model")
    if precision == "int8":
        round_to_int8(model)
    rows = 0.05 * torch.randn(NUM_VIRTUAL_TOKENS, model.get_input_embeddings().embedding_dim)
    (folder / "soft-prompt").mkdir()
    save_file({"prompt_embeddings": rows}, folder / "soft-prompt" / "adapter_model.safetensors")
    config = LoraConfig(
        "CAUSAL_LM", r=8, target_modules=ARCHITECTURES[name][1], use_dora=name in WITH_DORA
    )
    model = get_peft_model(model, config)
    for parameter_name, weights in model.named_parameters():
        # PEFT begins with zeros in these.
        if "lora_B" in parameter_name or "lora_embedding_A" in parameter_name:
            torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder / "lora", save_embedding_layers=False)
    # vLLM refuses the word DoRA, which admission takes out as well.
    saved = folder / "lora" / CONFIG_FILE
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"use_dora": False}))
    embed = model.eval().get_input_embeddings()

    def complete(index: int, with_soft_prompt: bool) -> list[int]:
        token_ids = list(PROMPTS[index])
        for num_generated in range(NUM_TOKENS):
            inputs = {"input_ids": torch.tensor([token_ids])}
            if name == "hrm_text":
                # The prompt's tokens see those behind them.
                types = [1] * len(PROMPTS[index]) + [0] * num_generated
                inputs["token_type_ids"] = torch.tensor([types])
            if with_soft_prompt:
                embeddings = embed(inputs.pop("input_ids"))
                inputs["inputs_embeds"] = torch.cat([rows[None], embeddings], dim=1)
            token_ids.append(int(model(**inputs).logits[0, -1].argmax()))
        return token_ids[len(PROMPTS[index]) :]

    expected = {}
    for case in cases_of(name):
        index, with_lora, with_soft_prompt = case
        with nullcontext() if with_lora else model.disable_adapter(), torch.inference_mode():
            expected[case] = complete(index, with_soft_prompt)
    return expected


def make_model(name: str, folder: Path) -> Any:
    """A random model, saved with a tokenizer, which vLLM asks for."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"model_type": name} | ARCHITECTURES[name][0] | TOKENS)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weights in model.parameters():
        if weights.dim() == 2:
            torch.nn.init.normal_(weights, std=STD.get(name, 0.3))
    # Small beside the layers' work: Gemma scales them up, and would repeat the last token for ever.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
    model.save_pretrained(folder)
    words = WordLevel({f"t{i}": i for i in range(TOKENS["vocab_size"])})
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder)
    return model


def round_to_int8(model: Any) -> None:
    """Every output channel of the linear layers, the head's too: 127 steps up to its largest."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            dimension = 0 if isinstance(module, Conv1D) else 1
            scale = module.weight.detach().abs().amax(dim=dimension, keepdim=True) / 127
            # A new tensor: the embedding, which may have shared the old one, stays as it is.
            rounded = (module.weight.detach() / scale).round() * scale
            module.weight = torch.nn.Parameter(rounded)


def by_vllm(
    folder: Path, settings: Settings, cases: list[Case], modules: list[str]
) -> tuple[dict[Case, list[int]], set[str]]:
    """All cases in one batch, and which of the modules have room for LoRAs."""
    import torch
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.inputs.engine import tokens_input
    from vllm.lora.request import LoRARequest

    from app.engine.protocol import AdapterFiles

    arguments = engine_arguments(folder / "model", settings, this_device())
    arguments |= {"distributed_executor_backend": "uni"}
    del arguments["max_logprobs"], arguments["shutdown_timeout"]
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    soft_prompts = SoftPrompts(torch.float32)
    soft_prompts.load(AdapterFiles(SOFT_PROMPT, "soft_prompt", folder / "soft-prompt"))
    lora = LoRARequest("lora", FIRST_ID, str(folder / "lora"))
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False
    )
    for number, (index, with_lora, with_soft_prompt) in enumerate(cases):
        token_ids = PROMPTS[index]
        engine.add_request(
            str(number),
            soft_prompts.input(token_ids, SOFT_PROMPT)
            if with_soft_prompt
            else tokens_input(token_ids),
            params,
            lora_request=lora if with_lora else None,
        )
    got: dict[Case, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                got[cases[int(output.request_id)]] = list(output.outputs[0].token_ids)
    (adapted,) = engine.collective_rpc("softserve_adapted_modules", args=(modules,))
    del engine
    cleanup_dist_env_and_memory()
    return got, set(adapted)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
