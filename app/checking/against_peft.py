"""softserve's engine against transformers and PEFT, with the same adapter on the same prompts.

The engine generates, greedily, and then PEFT follows: where it would take another token, or finds
one more or less likely, the two differ. One runs after the other, each in processes of its own, so
that there is one model in memory at a time.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from app.checking.admission import Admitted
from app.checking.comparison import Difference, change, difference
from app.engine.generation import resolve_sampling
from app.engine.model.precision import scheme_of
from app.engine.protocol import AdapterFiles, Decoding, Prompt
from app.engine.reference import Choice, Completed, Reference, follow
from app.engine.vllm.encoder_decoder import (
    default_encoder_window,
    is_encoder_decoder,
    num_positions,
)
from app.engine.vllm.engine import VLLMEngine
from app.settings import Settings
from softserve.schema.checks import AgainstPeft, ComparedPrompt, Divergence

NUM_TOKENS = 32
PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "Q: What is 2 + 2?\nA:",
    "def fibonacci(n):",
)
DECODING = Decoding(resolve_sampling(max_new_tokens=NUM_TOKENS, ignore_eos=True), logprobs=1)
KV_CACHE_GIB = 1.0
# Of tokens: what a tokenizer puts around a prompt, and a window that is not unusually small.
MARGIN, MIN_CONTEXT_WINDOW = 16, 256
NO_EFFECT = (
    "in PEFT the adapter changes no token, and log probabilities by no more than lies between the "
    "two engines: that they are equal says nothing of it"
)


@dataclass(slots=True)
class Completion:
    """What the engine generated for a prompt; `task` is that of a multitask soft prompt.

    `decoder_ids` are forced, and neither engine's choice.
    """

    prompt: str
    prompt_ids: list[int]
    task: int | None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    decoder_ids: tuple[int, ...] = ()


def compare_with_peft(
    adapter: Admitted, settings: Settings, prompts: Sequence[str], tolerance: float
) -> AgainstPeft:
    """Run both. It blocks, and takes the main thread's event loop.

    Raises:
        AdapterRejected: the engine cannot load the adapter.
        StartError: the engine cannot load the model.
        ReferenceFailed: transformers or PEFT cannot.
    """
    engine = VLLMEngine(_settings(adapter, settings, prompts))
    completions = asyncio.run(_complete_all(engine, adapter, prompts))
    followed = [
        Completed(each.prompt_ids, each.token_ids, each.task, each.decoder_ids)
        for each in completions
    ]
    reference = follow(adapter.model.folder, adapter.sent, engine.info.dtype, followed)
    return _compare(engine, completions, reference, tolerance)


def _settings(adapter: Admitted, settings: Settings, prompts: Sequence[str]) -> Settings:
    """Those of an engine that answers a few requests, exactly."""
    config = json.loads((adapter.model.folder / "config.json").read_bytes())
    is_quantized = scheme_of(config) is not None
    exact = settings.precision == "auto" and not is_quantized
    # No tokenizer makes more tokens than there are bytes.
    longest = max(len(prompt.encode()) for prompt in prompts) + MARGIN
    num_virtual = adapter.version.num_virtual_tokens or 0
    wanted = longest + num_virtual + NUM_TOKENS
    context_window = min(max(wanted, MIN_CONTEXT_WINDOW), adapter.model.context_window)
    return settings.model_copy(
        update={
            "precision": "fp32" if exact else settings.precision,
            "context_window": context_window,
            "encoder_window": _encoder_window(adapter.model.folder, longest + num_virtual),
            "kv_cache_gib": settings.kv_cache_gib or KV_CACHE_GIB,
            "max_loras": min(settings.max_loras, 1),
            "max_loaded_adapters": 1,
        }
    )


def _encoder_window(folder: Path, wanted: int) -> int | None:
    """One for so many tokens, as far as the model has positions; None where it has no encoder."""
    if not is_encoder_decoder(folder):
        return None
    window = max(default_encoder_window(folder), wanted)
    return min(window, num_positions(folder) or window)


async def _complete_all(
    engine: VLLMEngine, adapter: Admitted, prompts: Sequence[str]
) -> list[Completion]:
    version = adapter.version
    try:
        await engine.start()
        await engine.load_adapter(AdapterFiles(version.digest, version.kind, adapter.served))
        return await asyncio.gather(
            *(_complete(engine, adapter, i, prompt) for i, prompt in enumerate(prompts))
        )
    finally:
        await engine.stop()


async def _complete(engine: VLLMEngine, adapter: Admitted, index: int, text: str) -> Completion:
    version = adapter.version
    # Of several tasks, each prompt takes the next one.
    task = None if version.num_tasks is None else index % version.num_tasks
    named = version.task if task is None else task
    completion = Completion(text, await engine.tokenize(text), named)
    prompt = Prompt(
        index,
        completion.prompt_ids,
        lora=version.digest if version.kind == "lora" else None,
        soft_prompt=version.digest if version.kind == "soft_prompt" else None,
        num_virtual_tokens=version.num_virtual_tokens or 0,
        task=task,
    ).behind_forced(engine.info)
    completion.decoder_ids = prompt.decoder_ids
    async with aclosing(engine.generate("check", prompt, DECODING)) as chunks:
        async for chunk in chunks:
            completion.text += chunk.text
            completion.token_ids += chunk.token_ids
            completion.logprobs += [each.chosen.logprob for each in chunk.logprobs]
    return completion


def _compare(
    engine: VLLMEngine, completions: Sequence[Completion], reference: Reference, tolerance: float
) -> AgainstPeft:
    triples = list(zip(completions, reference.base, reference.adapted, strict=True))
    differences = [
        difference(each.token_ids, each.logprobs, adapted) for each, _, adapted in triples
    ]
    changes = [change(base, adapted) for _, base, adapted in triples]
    noise = max(each.largest for each in differences)
    has_effect = any(each.divergence is not None or each.largest > noise for each in changes)
    compared = [
        ComparedPrompt(
            prompt=completion.prompt,
            prompt_token_ids=completion.prompt_ids,
            task=completion.task,
            completion=completion.text,
            token_ids=completion.token_ids,
            logprobs=[_finite(each) for each in completion.logprobs],
            divergence=_divergence(engine, completion, adapted, found),
            largest_difference=_finite(found.largest),
            changed_at=changed.divergence,
            largest_change=_finite(changed.largest),
        )
        for (completion, _, adapted), found, changed in zip(
            triples, differences, changes, strict=True
        )
    ]
    return AgainstPeft(
        equal=all(each.is_within(tolerance) for each in differences),
        tolerance=tolerance,
        dtype=engine.info.dtype,
        warning=None if has_effect else NO_EFFECT,
        prompts=compared,
    )


def _divergence(
    engine: VLLMEngine, completion: Completion, adapted: Sequence[Choice], found: Difference
) -> Divergence | None:
    if (position := found.divergence) is None:
        return None
    return Divergence(
        position=position,
        token=engine.token_text(completion.token_ids[position]),
        peft_token=engine.token_text(adapted[position].token_id),
        margin=_finite(found.margin),
    )


def _finite(number: float) -> float | None:
    """JSON has no other numbers."""
    return number if math.isfinite(number) else None
