"""A random model of FLAN-T5-small's shape: log probabilities by vLLM, by transformers in FP64.

    python -m tests.server.encoder_decoder_logprobs FOLDER

A program of its own, as tests/server/encoder_decoder.py is. It prints, for each prompt, the largest
difference over all positions and tokens: of vLLM, and of transformers in FP32.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.engine.vllm.device import this_device
from app.engine.vllm.encoder_decoder import encoder_decoder_input
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.settings import Settings
from tests.server.encoder_decoder import outputs, register_made_classes, save_tokenizer

# But for the vocabulary, which is an eighth of it.
VOCABULARY = 4096
SMALL = {
    "vocab_size": VOCABULARY,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
LENGTHS = (1, 5, 17, 40, 90, 128)
NUM_TOKENS = 48


def main(folder: Path) -> None:
    settings = Settings(
        cache_dir=folder / "cache", kv_cache_gib=0.3, context_window=64, max_loras=0
    )
    prepare_environment(settings)
    prepare_cpu_environment(eager=True)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    register_made_classes()
    model = make_model(folder)
    prompts = [
        [*((37 * length + 11 * i) % 4000 + 3 for i in range(length)), 1] for length in LENGTHS
    ]
    made = by_vllm(folder, settings, prompts)
    pairs = list(zip(prompts, made, strict=True))
    rounded = [by_transformers(model, prompt, token_ids) for prompt, (token_ids, _) in pairs]
    model.double()
    for (prompt, (token_ids, logprobs)), theirs in zip(pairs, rounded, strict=True):
        expected = by_transformers(model, prompt, token_ids)
        differences = [float((each - expected).abs().max()) for each in (logprobs, theirs)]
        print(json.dumps([len(prompt), *differences]))  # noqa: T201


def make_model(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("t5", **SMALL)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    # As transformers begins, some tokens are as likely as good as never.
    head = torch.randn(VOCABULARY, config.d_model) * 2 * config.d_model**-0.5
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    save_tokenizer(folder, VOCABULARY)
    return model.eval()


def by_transformers(model: Any, prompt: list[int], token_ids: list[int]) -> Tensor:
    """The log probabilities at each of the tokens, of (tokens, vocabulary)."""
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([prompt]),
            decoder_input_ids=torch.tensor([[0, *token_ids[:-1]]]),
        ).logits[0]
    return logits.double().log_softmax(dim=-1)


def by_vllm(
    folder: Path, settings: Settings, prompts: list[list[int]]
) -> list[tuple[list[int], Tensor]]:
    """What it generates for each prompt, all at once, and the log probabilities there."""
    from vllm import EngineArgs, LLMEngine, SamplingParams

    arguments = engine_arguments(folder, settings, this_device())
    arguments |= {"distributed_executor_backend": "uni"}
    del arguments["shutdown_timeout"]
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, logprobs=-1, ignore_eos=True, flat_logprobs=True
    )
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), encoder_decoder_input(prompt, [0]), params)
    made = {}
    for output in outputs(engine):
        if output.finished:
            (completion,) = output.outputs
            made[int(output.request_id)] = list(completion.token_ids), whole(completion.logprobs)
    return [made[number] for number in range(len(prompts))]


def whole(flat: Any) -> Tensor:
    """vLLM's log probabilities of all tokens, as (positions, vocabulary)."""
    positions = torch.full((NUM_TOKENS, VOCABULARY), -torch.inf, dtype=torch.float64)
    for position, (start, end) in enumerate(zip(flat.start_indices, flat.end_indices, strict=True)):
        positions[position, flat.token_ids[start:end]] = torch.tensor(
            flat.logprobs[start:end], dtype=torch.float64
        )
    return positions


if __name__ == "__main__":
    main(Path(sys.argv[1]))
