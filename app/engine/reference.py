"""What transformers and PEFT make of an adapter: the reference that an engine is held to.

They follow a text that was generated already, and say at each of its positions which token they
would take: a whole completion is one forward pass. Up to the first token that they would not take,
that is their own greedy decoding.

They run in a process of their own, so that what they hold in memory is given back when it ends.
"""

import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.engine.model.decoder_tokens import decoder_tokens
from app.engine.plugin.lifetime import end_with_parent
from app.errors import ReferenceFailed


@dataclass(frozen=True, slots=True)
class Completed:
    """The token ids of a prompt and of its completion, and the task of a multitask soft prompt.

    `decoder_ids` are what an encoder-decoder model's decoder has before the completion.
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    task: int | None = None
    decoder_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest token at a position, its log probability, and that of the text's own token."""

    token_id: int
    logprob: float
    logprob_of_text: float


@dataclass(frozen=True, slots=True)
class Reference:
    """What is chosen along each completion, without the adapter and with it."""

    base: list[list[Choice]]
    adapted: list[list[Choice]]


def follow(model: Path, adapter: Path, dtype: str, completions: Sequence[Completed]) -> Reference:
    """Have the model in `dtype` ("float32"), then with PEFT's adapter on it, follow completions.

    Raises:
        ReferenceFailed: transformers cannot load the model, or PEFT the adapter.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, model, adapter, dtype, completions)
    process = context.Process(target=_follow_and_send, args=arguments, daemon=True)
    process.start()
    sender.close()
    try:
        reference: Reference = receiver.recv()
    except EOFError:
        process.join()
        raise ReferenceFailed(
            "transformers and PEFT cannot run it: the reason is above, where they gave one, else "
            f"they need more memory than there is (exit code {process.exitcode})"
        ) from None
    finally:
        process.terminate()
        process.join()
    return reference


def _follow_and_send(
    sender: Connection, model: Path, adapter: Path, dtype: str, completions: Sequence[Completed]
) -> None:
    # Ctrl-C reaches every process of the terminal's group: the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    has_encoder = getattr(AutoConfig.from_pretrained(model), "is_encoder_decoder", False)
    kind = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
    base = kind.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    base.eval()
    if has_encoder:
        # It generates behind a token that starts them all.
        start = decoder_tokens(model).start
        completions = [
            replace(each, decoder_ids=[start, *each.decoder_ids]) for each in completions
        ]
    without = [_choices(base, replace(each, task=None)) for each in completions]
    adapted = PeftModel.from_pretrained(base, adapter).to(device)
    adapted.eval()
    sender.send(Reference(without, [_choices(adapted, each) for each in completions]))


def _choices(model: Any, completed: Completed) -> list[Choice]:
    import torch

    length = len(completed.token_ids)
    if getattr(model.config, "is_encoder_decoder", False):
        text = torch.tensor([[*completed.decoder_ids, *completed.token_ids]], device=model.device)
        prompt = torch.tensor([completed.prompt_ids], device=model.device)
        inputs = {"input_ids": prompt, "decoder_input_ids": text[:, :-1]}
    else:
        text = torch.tensor([[*completed.prompt_ids, *completed.token_ids]], device=model.device)
        inputs = {"input_ids": text[:, :-1]}
    of_task = {}
    if completed.task is not None:
        of_task["task_ids"] = torch.tensor([completed.task], device=model.device)
    with torch.inference_mode():
        # PEFT puts rows in front of some, so that positions count from the end.
        logits = model(**inputs, use_cache=False, **of_task).logits[0, -length:]
    logprobs = logits.float().log_softmax(dim=-1)
    best, token_ids = logprobs.max(dim=-1)
    of_text = logprobs.gather(1, text[0, -length:, None])[:, 0]
    return [
        Choice(*choice)
        for choice in zip(token_ids.tolist(), best.tolist(), of_text.tolist(), strict=True)
    ]
