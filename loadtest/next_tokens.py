"""What a precision does to the distribution of the next token, over a text; precision.py runs it.

    SOFTSERVE_PRECISION=int8 python -m loadtest.next_tokens DATA REFERENCE [--write]

The engine runs in this process, on softserve's own arguments. With `--write`, the log probabilities
of all tokens at all positions are written to the file REFERENCE; without it, they are compared with
those in it. The figures are a line of JSON on stdout.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from app.engine.model.find import find_model
from app.engine.vllm.device import this_device
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.jsonl import lines_of, value_of
from app.settings import Settings

NUM_TOKENS = 20_480
WINDOW = 1_024

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Quality:
    """Over all positions: the perplexity, the mean KL divergence from the reference (in nats), and
    the share of positions at which the most likely token is the reference's."""

    num_tokens: int
    perplexity: float
    kl_divergence: float = 0.0
    top_1_agreement: float = 1.0


@cli.command()
def main(
    data: Annotated[Path, typer.Argument(help="A JSONL file of texts.")],
    reference: Annotated[Path, typer.Argument(help="A file of 2 GB for 20,480 tokens.")],
    write: Annotated[bool, typer.Option("--write", help="Make the reference.")] = False,
    num_tokens: Annotated[int, typer.Option(help="Tokens of the text.")] = NUM_TOKENS,
) -> None:
    """Measure one precision; settings come from SOFTSERVE_* variables."""
    settings = Settings()
    prepare_environment(settings)
    prepare_cpu_environment(eager=True)
    # The model is looked into: it has to be in this process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    _, folder = find_model(settings)
    token_ids = tokens_of(data, folder, num_tokens)
    windows = [token_ids[start : start + WINDOW] for start in range(0, num_tokens, WINDOW)]
    quality = measure(engine_of(folder, settings), windows, reference, write)
    print(json.dumps(asdict(quality)))  # noqa: T201


def tokens_of(data: Path, folder: Path, num_tokens: int) -> list[int]:
    """The first tokens of the texts in a file, one after the other.

    Raises:
        ValueError: there are fewer.
    """
    from transformers import AutoTokenizer

    rows = (value_of(line) for _, line in lines_of(data.read_bytes()))
    text = "\n\n".join("\n".join(str(part) for part in row.values()) for row in rows)
    token_ids: list[int] = AutoTokenizer.from_pretrained(folder).encode(text, verbose=False)
    if len(token_ids) < num_tokens:
        raise ValueError(f"{data} has {len(token_ids):,} tokens, fewer than {num_tokens:,}")
    return token_ids[:num_tokens]


def engine_of(folder: Path, settings: Settings) -> Any:
    from vllm import EngineArgs, LLMEngine

    arguments = engine_arguments(folder, settings, this_device())
    del arguments["max_logprobs"], arguments["shutdown_timeout"]
    arguments |= {"distributed_executor_backend": "uni", "enable_prefix_caching": False}
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def measure(engine: Any, windows: list[list[int]], reference: Path, write: bool) -> Quality:
    vocabulary_size = engine.model_config.get_vocab_size()
    positions = sum(len(window) - 1 for window in windows)
    # Half precision is finer than the differences that are measured: they are averaged.
    expected: np.memmap[Any, np.dtype[np.float16]] = np.memmap(
        reference,
        dtype=np.float16,
        mode="w+" if write else "r",
        shape=(positions, vocabulary_size),
    )
    log_likelihood = kl = agreements = 0.0
    position = 0
    for window in windows:
        for targets, logprobs in prompt_logprobs(engine, window):
            rows = slice(position, position + len(logprobs))
            position += len(logprobs)
            log_likelihood += logprobs[np.arange(len(targets)), targets].sum(dtype=np.float64)
            if write:
                expected[rows] = logprobs
            else:
                of_reference = expected[rows].astype(np.float32)
                differences = np.exp(of_reference) * (of_reference - logprobs)
                kl += differences.sum(dtype=np.float64)
                agreements += (of_reference.argmax(axis=1) == logprobs.argmax(axis=1)).sum()
    perplexity = math.exp(-log_likelihood / positions)
    if write:
        return Quality(positions, perplexity)
    return Quality(positions, perplexity, kl / positions, float(agreements / positions))


def prompt_logprobs(engine: Any, token_ids: list[int]) -> Iterator[tuple[list[int], Any]]:
    """The tokens from the second on, and the log probabilities (tokens, vocabulary) before each."""
    import torch
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    model = engine.model_executor.driver_worker.worker.model_runner.model
    compute_logits = type(model).compute_logits
    seen: list[torch.Tensor] = []

    def observe(hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        logits = compute_logits(model, hidden_states, *arguments, **options)
        seen.append(logits.float())
        return logits

    model.compute_logits = observe
    # Asked for log probabilities of the prompt, vLLM computes the logits of all of it.
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    engine.add_request("window", tokens_input(token_ids), params)
    while engine.has_unfinished_requests():
        engine.step()
    del model.compute_logits
    rows = torch.cat([logits for logits in seen if len(logits) > 1])
    assert len(rows) == len(token_ids) - 1, "not the logits of every position"
    yield token_ids[1:], rows.log_softmax(dim=-1).numpy()


if __name__ == "__main__":
    cli()
