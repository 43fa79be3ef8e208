"""An encoder-decoder model here and by transformers' batched `generate`, in turns.

    python -m loadtest.seq2seq [--model google/flan-t5-small] [--requests 64] [--rounds 3]

Without --model it is a random model of FLAN-T5-small's shape, made for the run. transformers gets
batches of 16 in the order of arrival, each padded to its longest prompt and generating until its
longest completion is done, as people serve it; softserve the same requests over HTTP, streamed.
Only the tokens that were asked for count. The first round warms up; further settings: SOFTSERVE_*.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest.clients import streaming_body
from loadtest.harness import Bench, bench, client_of, print_table
from loadtest.measurements import Latency, Measurement, pool
from loadtest.prompts import WORDS
from loadtest.servers import Server
from loadtest.workload import Request, Workload

BATCH_SIZE = 16
CLIENTS = (16, 32)
PROMPT_TOKENS, NEW_TOKENS = (16, 256), (8, 128)
# FLAN-T5-small's.
VOCABULARY_SIZE = 32_128
SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "n_positions": 512,
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    model: Annotated[str | None, typer.Option(help="A folder or hub id.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 3,
) -> None:
    """Print tokens a second, the ratio of each round, and the latencies over HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SOFTSERVE_MODEL"] = model or str(make_model(Path(folder)))
        with bench() as harness, harness.server() as server:
            _measure(harness, server, requests, rounds)


def _measure(harness: Bench, server: Server, num_requests: int, num_rounds: int) -> None:
    with client_of(server) as client:
        reference = Transformers(harness.model, client.get("/info").json()["dtype"])
    workload = Workload(harness.tokenize, PROMPT_TOKENS, NEW_TOKENS)
    by_transformers: list[float] = []
    by_clients: dict[int, list[Measurement]] = {clients: [] for clients in CLIENTS}
    for index in range(num_rounds + 1):
        load = workload.of(num_requests, seed=f"round {index}")
        measured = reference.tokens_per_second(load)
        bodies = [streaming_body(each.prompt, each.num_new_tokens) for each in load]
        by_server = {
            clients: harness.measure(f"{clients} clients", server, bodies, clients)
            for clients in CLIENTS
        }
        if index:
            by_transformers.append(measured)
            for clients, measurement in by_server.items():
                by_clients[clients].append(measurement)
    print_table(_table(by_transformers, by_clients))


class Transformers:
    """The same model there, in this process and with the same type of numbers."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )

    def tokens_per_second(self, requests: Sequence[Request]) -> float:
        """The tokens that were asked for, over the seconds that all batches take."""
        started = time.perf_counter()
        for start in range(0, len(requests), BATCH_SIZE):
            batch = requests[start : start + BATCH_SIZE]
            inputs = self._tokenizer(
                [each.prompt for each in batch], return_tensors="pt", padding=True
            )
            longest = max(each.num_new_tokens for each in batch)
            lengths = {"max_new_tokens": longest, "min_new_tokens": longest}
            self._model.generate(**inputs, **lengths, do_sample=False)
        seconds = time.perf_counter() - started
        return sum(each.num_new_tokens for each in requests) / seconds


def _table(by_transformers: Sequence[float], by_clients: dict[int, list[Measurement]]) -> Table:
    table = Table("", "tokens/s", "ratio, by round", "E2E p50, p99 ms", box=SIMPLE_HEAD)
    median = f"{statistics.median(by_transformers):.0f}"
    table.add_row(f"transformers, batches of {BATCH_SIZE}", median)
    for clients, measurements in by_clients.items():
        speeds = [each.tokens_per_second for each in measurements]
        ratios = [
            speed / reference for speed, reference in zip(speeds, by_transformers, strict=True)
        ]
        # A random model may say nothing but special tokens, which have no text to wait for.
        e2e = Latency.of([answer.seconds for answer in pool(measurements).answers])
        table.add_row(
            f"softserve, {clients} clients",
            f"{statistics.median(speeds):.0f}",
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
            f"{e2e.p50_ms:.0f}, {e2e.p99_ms:.0f}",
        )
    return table


def make_model(folder: Path) -> Path:
    """A random model of FLAN-T5-small's shape whose tokenizer has a token for each common word."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in dict.fromkeys(WORDS))]
    pieces += [f"▁word{index}" for index in range(len(pieces), VOCABULARY_SIZE)]
    T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0).save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model("t5", **SHAPE)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    cli()
