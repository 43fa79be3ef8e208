"""Decodes completions with vLLM's detokenizer and softserve's; test_detokenizer.py starts it.

It reads [tokenizer, prompt, completion, stop strings] of every case from stdin, and writes the text
and the stop string of each, by class, to stdout.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest, detokenizer

from app.engine.vllm.detokenizer import keep_prompts_out_of_completions

WORDS = ("▁", "▁a", "▁secret", "▁plan", "a", "!")
# What starts a decoder, and a language.
SPECIAL = ["<s>", "<de>"]


def byte_level() -> Tokenizer:
    """Every byte is a token, as for GPT-2 and most after it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: index for index, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Words with a mark for the space before them, as for Llama 2; other characters are bytes."""
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    vocabulary: Any = [(token, -1.0) for token in tokens]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def ids(kind: str, text: str | list[int]) -> list[int]:
    return TOKENIZERS[kind].encode(text).ids if isinstance(text, str) else text


def decoded(
    kind: str, prompt: str | list[int], completion: str | list[int], stop: Sequence[str]
) -> list[str | None]:
    request = EngineCoreRequest(
        request_id="case",
        prompt_token_ids=ids(kind, prompt),
        mm_features=None,
        sampling_params=SamplingParams(stop=list(stop)),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    made = detokenizer.IncrementalDetokenizer.from_new_request(
        PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind]), request
    )
    for token_id in ids(kind, completion):
        if (stopped := made.update([token_id], False)) is not None:
            return [made.get_next_output_text(True, False), stopped]
    return [made.get_next_output_text(True, False), None]


if __name__ == "__main__":
    cases = json.load(sys.stdin)
    of_vllm = [decoded(*case) for case in cases]
    keep_prompts_out_of_completions()
    ours = [decoded(*case) for case in cases]
    keep_prompts_out_of_completions(has_encoder=True)
    of_decoder = [decoded(*case) for case in cases]
    json.dump({"vllm": of_vllm, "softserve": ours, "decoder": of_decoder}, sys.stdout)
