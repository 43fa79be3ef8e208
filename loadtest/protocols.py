"""What OpenAI's protocol costs beside `/generate`: the same prompts on one server, in turns.

    python -m loadtest.protocols [--clients 32] [--requests 128] [--rounds 5]

Every answer is streamed and has exactly --new-tokens tokens. The first round only warms up. The CPU
is that of the process that answers HTTP; further settings: SOFTSERVE_*.
"""

import json
import statistics
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest.clients import stream_all, streaming_body
from loadtest.harness import Bench, bench, print_table
from loadtest.measurements import Measurement
from loadtest.prompts import make_prompts
from loadtest.servers import Server

GENERATE, COMPLETIONS = "/generate", "/v1/completions"
NUM_PROMPT_TOKENS = 64

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round of one protocol."""

    tokens_per_second: float
    ttft_p50_ms: float
    itl_p50_ms: float
    http_cpu_ms_per_token: float


@cli.command()
def main(
    clients: Annotated[int, typer.Option(min=1, help="Streams at a time.")] = 32,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
) -> None:
    """Measure both protocols in turns, and print medians and the ratio of each round."""
    figures: dict[str, list[Figures]] = {GENERATE: [], COMPLETIONS: []}
    with bench() as harness, harness.server() as server:
        count = 2 * (rounds + 1) * requests
        prompts = make_prompts(count, NUM_PROMPT_TOKENS, harness.tokenize, seed=0)
        for index in range(rounds + 1):
            for path in list(figures)[:: 1 if index % 2 else -1]:
                asked, prompts = prompts[:requests], prompts[requests:]
                measured = _round(harness, server, path, asked, clients, new_tokens)
                if index:
                    figures[path].append(measured)
    print_table(_table(figures))


def _round(
    harness: Bench, server: Server, path: str, prompts: list[str], clients: int, new_tokens: int
) -> Figures:
    bodies = [_body(path, prompt, new_tokens) for prompt in prompts]
    task = harness.progress.add_task(path, total=len(bodies))
    before = server.cpu_seconds()
    answers = stream_all(server, bodies, clients, lambda: harness.progress.advance(task), path=path)
    cpu = server.cpu_seconds() - before
    harness.progress.remove_task(task)
    measured = Measurement.of(path, answers)
    return Figures(
        measured.tokens_per_second,
        measured.ttft.p50_ms,
        measured.itl.p50_ms,
        1000 * cpu.serving / measured.completion_tokens,
    )


def _body(path: str, prompt: str, new_tokens: int) -> bytes:
    if path == GENERATE:
        return streaming_body(prompt, new_tokens)
    body = {
        "prompt": prompt,
        "max_tokens": new_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


def _table(figures: dict[str, list[Figures]]) -> Table:
    table = Table("", GENERATE, COMPLETIONS, "ratio, by round", box=SIMPLE_HEAD)
    for name in Figures.__dataclass_fields__:
        values = {
            path: [getattr(each, name) for each in rounds] for path, rounds in figures.items()
        }
        ratios = [
            other / one for one, other in zip(values[GENERATE], values[COMPLETIONS], strict=True)
        ]
        table.add_row(
            name,
            *(f"{statistics.median(values[path]):.3f}" for path in (GENERATE, COMPLETIONS)),
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
        )
    return table


if __name__ == "__main__":
    cli()
