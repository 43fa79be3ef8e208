"""Tiny encoder-decoder models, random and taught, by vLLM and by transformers and PEFT.

    python -m tests.server.encoder_decoder FOLDER

A program of its own, as tests/server/architectures.py is. It prints, a line each, the token ids of
every case of a model as JSON, and what the engine did meanwhile.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

from app.engine.model.decoder_tokens import decoder_tokens
from app.engine.model.precision import DTYPES
from app.engine.vllm.device import this_device
from app.engine.vllm.encoder_decoder import ARCHITECTURES, encoder_decoder_input
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.engine.vllm.loras import FIRST_ID
from app.settings import Precision, Settings
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from tests.server.taught import teach

VOCABULARY = 256
SHAPE = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 32,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dropout_rate": 0.0,
}
GATED = SHAPE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART_SHAPE = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dropout": 0.0,
}
FORCED = {"forced_bos_token_id": 2, "forced_eos_token_id": 1}
T5_LORAS: dict[str, list[str] | str] = {
    "all": "all-linear",
    "encoder": r"encoder\..*\.(q|v|wi_0|wi|wo)",
    "decoder": r"decoder\..*SelfAttention\.(q|k|o)",
    "cross": r"decoder\..*EncDecAttention\.(q|k|v|o)",
    "dora": ["q", "v", "wi_0", "wo"],
}
BART_LORAS: dict[str, list[str] | str] = {
    "all": "all-linear",
    "encoder": r".*encoder\.layers\..*\.(q_proj|v_proj|fc1|fc2)",
    "decoder": r".*decoder\..*self_attn\.(q_proj|k_proj|out_proj)",
    "cross": r".*encoder_attn\.(q_proj|k_proj|v_proj|out_proj)",
    "dora": ["q_proj", "v_proj", "fc1", "out_proj"],
}


@dataclass(frozen=True)
class Model:
    """A type of transformers', its config, which linear layers LoRAs of its kind have, and tokens.

    `outliers` are by how much those weights are larger that make values which FP16 does not hold.
    One that is `taught` has learned a task; the others are random.
    """

    model_type: str
    config: dict[str, Any]
    forced: dict[str, int] = field(default_factory=dict)
    outliers: float = 1.0
    taught: bool = False

    @property
    def loras(self) -> dict[str, list[str] | str]:
        """Of every module, of one stack's, and of what looks from one at the other."""
        return T5_LORAS if "d_kv" in self.config else BART_LORAS


# By name. Sizes that transformers or vLLM could take for others.
MODELS = {
    "flan-t5": Model("t5", GATED | {"num_layers": 3, "num_decoder_layers": 2}),
    "t5": Model("t5", SHAPE | {"feed_forward_proj": "relu", "num_heads": 4}),
    "mt5": Model("mt5", GATED | {"relative_attention_num_buckets": 8}),
    "taught": Model("t5", GATED, taught=True),
    # What comes out of its feed-forward layers is more than FP16 holds.
    "large t5": Model("t5", GATED, outliers=3000.0),
    "bart": Model(
        "bart", BART_SHAPE | {"encoder_layers": 3, "encoder_attention_heads": 4}, forced=FORCED
    ),
    "mbart": Model(
        "mbart",
        BART_SHAPE | {"scale_embedding": True, "activation_function": "relu"},
        # The code of a language.
        forced=FORCED | {"forced_bos_token_id": 7},
    ),
}
# By name: how a model is run.
RUNS: dict[str, dict[str, Any]] = {
    "flan-t5": {},
    "flan-t5, preempted": {"preempt": True},
    "flan-t5, one by one": {"at_once": 1},
    "flan-t5, in bf16": {"precision": "bf16"},
    "t5": {},
    "mt5": {},
    "taught": {},
    "large t5": {},
    "large t5, in fp16": {"precision": "fp16"},
    # Without the layers that are in FP32 then.
    "large t5, in fp16 alone": {"precision": "fp16"},
    "bart": {},
    "bart, preempted": {"preempt": True},
    "bart, one by one": {"at_once": 1},
    "bart, in bf16": {"precision": "bf16"},
    "mbart": {},
}
SOFT_PROMPTS = {"short": 3, "long": 20}
LENGTHS = (1, 2, 7, 19, 33, 64, 90)
# Beyond the first block of the cache, so that there is something to wait for.
NUM_TOKENS = 40


@dataclass(frozen=True)
class Case:
    """A request: how many tokens for the encoder and the decoder, and the names of its adapters."""

    length: int
    num_decoder_tokens: int
    lora: str | None
    soft_prompt: str | None

    @property
    def encoder_ids(self) -> list[int]:
        """Any tokens but the special ones, other ones for each length, and the end."""
        return [*((self.length * 37 + 11 * i) % 250 + 3 for i in range(self.length)), 1]

    def decoder_ids(self, start: int) -> list[int]:
        return [start, *range(40, 40 + self.num_decoder_tokens)]


def cases() -> list[Case]:
    """Every pair of adapters, with prompts of all lengths among them."""
    lengths = (LENGTHS[number % len(LENGTHS)] for number in count())
    pairs = product([None, *T5_LORAS], [None, *SOFT_PROMPTS])
    return [
        Case(length, num_decoder_tokens, *pair)
        for pair in pairs
        for num_decoder_tokens, length in zip((0, 3), lengths, strict=False)
    ]


def main(folder: Path) -> None:
    """Print `[NAME, {case: [by vLLM, by transformers]}, number of preemptions]` for each run.

    In another precision than FP32, what transformers makes in it of the cases without a LoRA is
    the last item.
    """
    settings = Settings(
        cache_dir=folder / "cache", kv_cache_gib=0.1, context_window=128, max_lora_rank=8
    )
    prepare_environment(settings)
    prepare_cpu_environment(eager=True)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    register_made_classes()
    expected = {name: by_transformers(name, folder / name) for name in MODELS}
    for run, how in RUNS.items():
        name = run.partition(",")[0]
        narrow = patch("app.engine.plugin.seq2seq.t5.wide", lambda dtype: dtype)
        with narrow if run.endswith("alone") else nullcontext():
            got, num_preemptions = by_vllm(folder / name, settings, cases(), **how)
        compared = {str(case): [got[case], expected[name][case]] for case in got}
        report: list[Any] = [run, compared, num_preemptions]
        if "precision" in how:
            rounded = by_transformers_in(how["precision"], folder / name)
            report += [{str(case): token_ids for case, token_ids in rounded.items()}]
        print(json.dumps(report), flush=True)  # noqa: T201


def register_made_classes() -> None:
    """As tests/server/architectures.py: vLLM would start a process for each, to look at it."""
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(
            architecture, ModelRegistry.models[architecture].load_model_cls()
        )


def by_transformers(name: str, folder: Path) -> dict[Case, list[int]]:
    """Make the model and its adapters below `folder`, and generate with them, one by one."""
    import torch
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    base: Any = make_model(name, folder / "model")
    rows = {}
    for soft_prompt, length in SOFT_PROMPTS.items():
        tuning = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=length)
        tuned = get_peft_model(deepcopy(base), tuning)
        tuned.save_pretrained(folder / soft_prompt)
        rows[soft_prompt] = tuned.get_prompt(batch_size=1)[:, :length].detach()
    models: dict[str | None, Any] = {None: base}
    for lora, targets in MODELS[name].loras.items():
        lora_config = LoraConfig(
            "SEQ_2_SEQ_LM", r=8, target_modules=targets, use_dora=lora == "dora"
        )
        models[lora] = get_peft_model(deepcopy(base), lora_config)
        for parameter_name, weights in models[lora].named_parameters():
            # PEFT begins with zeros in these.
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(weights, std=0.1)
        models[lora].save_pretrained(folder / lora, save_embedding_layers=False)
        # vLLM refuses the word DoRA, which admission takes out as well.
        saved = folder / lora / CONFIG_FILE
        saved.write_text(json.dumps(json.loads(saved.read_text()) | {"use_dora": False}))
        models[lora].eval()

    with torch.inference_mode():
        return {case: complete(models[case.lora], rows, case) for case in cases()}


def by_transformers_in(precision: Precision, folder: Path) -> dict[Case, list[int]]:
    """The cases without a LoRA, by the model that `by_transformers` has made, in a precision."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSeq2SeqLM

    dtype = getattr(torch, DTYPES[precision])
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model", dtype=dtype)
    rows = {
        name: load_file(folder / name / WEIGHTS_FILE)["prompt_embeddings"][None, :length].to(dtype)
        for name, length in SOFT_PROMPTS.items()
    }
    with torch.inference_mode():
        return {case: complete(model, rows, case) for case in cases() if case.lora is None}


def complete(model: Any, rows: dict[str, Any], case: Case) -> list[int]:
    """`rows` are the soft prompts', of (1, virtual tokens, width)."""
    import torch

    decoder_ids = case.decoder_ids(model.config.decoder_start_token_id)
    embeddings = model.get_input_embeddings()(torch.tensor([case.encoder_ids]))
    if case.soft_prompt is not None:
        embeddings = torch.cat([rows[case.soft_prompt], embeddings], dim=1)
    completed = model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2]),
        decoder_input_ids=torch.tensor([decoder_ids]),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        num_beams=1,
    )
    token_ids: list[int] = completed[0, len(decoder_ids) :].tolist()
    return token_ids


def make_model(name: str, folder: Path) -> Any:
    """A model, saved with a tokenizer, which vLLM asks for."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    made = MODELS[name]
    model = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(made.model_type, **made.config), dtype=torch.float32
    )
    for parameter_name, weights in model.named_parameters():
        if "relative_attention_bias" in parameter_name:
            torch.nn.init.normal_(weights)
        elif (
            not made.taught
            and re.search(r"\.(block|layers)\.", parameter_name)
            and weights.dim() == 2
        ):
            # As transformers begins, all prompts end in the same token.
            weights.data *= 2.5 if "block" in parameter_name else 5.0
            if parameter_name.endswith(("wo.weight", "fc2.weight")):
                weights.data *= made.outliers
        elif weights.dim() == 1 and "norm" not in parameter_name:
            torch.nn.init.normal_(weights, std=0.1)
        elif "embed_positions" in parameter_name:
            # Else one token comes again and again.
            weights.data *= 40.0 if made.config.get("scale_embedding") else 5.0
    if not made.config.get("tie_word_embeddings", True):
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, made.config["d_model"]))
        model.config.tie_word_embeddings = False
    if made.taught:
        teach(model)
    if hasattr(model, "final_logits_bias"):
        torch.nn.init.normal_(model.final_logits_bias, std=0.02)
    model.generation_config.update(**made.forced)
    model.save_pretrained(folder)
    save_tokenizer(folder, VOCABULARY)
    return model.eval()


def save_tokenizer(folder: Path, num_words: int) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({f"t{i}": i for i in range(num_words)})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    tokenizer.eos_token = "t1"  # noqa: S105
    tokenizer.save_pretrained(folder)


def by_vllm(
    folder: Path,
    settings: Settings,
    asked: Sequence[Case],
    *,
    preempt: bool = False,
    at_once: int = 64,
    precision: Precision = "fp32",
) -> tuple[dict[Case, list[int]], int]:
    """The cases' token ids, with so many cases in a batch, and how often one was preempted."""
    from vllm import EngineArgs, LLMEngine
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = settings.model_copy(update={"precision": precision})
    start = decoder_tokens(folder / "model").start
    arguments = engine_arguments(folder / "model", settings, this_device())
    arguments |= {"distributed_executor_backend": "uni", "max_num_seqs": 64}
    if preempt:
        # vLLM wants room for an encoder's input of as many tokens.
        arguments |= {"max_num_batched_tokens": 512, "num_gpu_blocks_override": 24}
    del arguments["max_logprobs"], arguments["shutdown_timeout"]
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    scheduler = engine.engine_core.engine_core.scheduler
    counted = Mock(side_effect=scheduler._preempt_request)
    scheduler._preempt_request = counted
    got: dict[Case, list[int]] = {}
    for first in range(0, len(asked), at_once):
        add_requests(engine, folder, start, asked[first : first + at_once])
        got |= finished(engine, asked[first:])
    del engine
    cleanup_dist_env_and_memory()
    return got, counted.call_count


def add_requests(engine: Any, folder: Path, start: int, asked: Sequence[Case]) -> None:
    from safetensors.torch import load_file
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, detokenize=False)
    for number, case in enumerate(asked):
        rows = None
        if case.soft_prompt is not None:
            tensors = load_file(folder / case.soft_prompt / WEIGHTS_FILE)
            rows = tensors["prompt_embeddings"][: SOFT_PROMPTS[case.soft_prompt]]
        lora_id = None if case.lora is None else FIRST_ID + list(T5_LORAS).index(case.lora)
        engine.add_request(
            str(number),
            encoder_decoder_input(
                case.encoder_ids, case.decoder_ids(start), case.soft_prompt or "", rows
            ),
            params,
            lora_request=lora_id and LoRARequest(case.lora, lora_id, str(folder / str(case.lora))),
        )


def finished(engine: Any, asked: Sequence[Case]) -> dict[Case, list[int]]:
    return {
        asked[int(output.request_id)]: list(output.outputs[0].token_ids)
        for output in outputs(engine)
        if output.finished
    }


def outputs(engine: Any) -> Iterator[Any]:
    while engine.has_unfinished_requests():
        yield from engine.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
