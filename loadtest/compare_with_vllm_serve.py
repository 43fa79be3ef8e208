"""softserve beside vLLM's own server: the same engine, prompts and clients, one after the other.

    python -m loadtest.compare_with_vllm_serve --rounds 2 --json results/compare.json

Only one engine runs at a time, and the servers take turns (A B, B A, ...), so that what drifts
on the machine meets both alike.
"""

import json
import os
import platform
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.engine.model.find import find_model
from app.errors import SoftserveError
from app.settings import Settings
from loadtest.clients import RequestFailed, stream_all
from loadtest.measurements import Measurement, Ratio, pool
from loadtest.prompts import make_prompts, tokenizer_of
from loadtest.servers import SOFTSERVE, VLLM_SERVE, Server, ServerFailed, ServerKind, running

PROMPT_SEED = 0
WARM_UP_SEED = 1

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent to either server."""

    model: str
    num_clients: int
    num_new_tokens: int
    prompts: list[str]
    warm_up_prompts: list[str]

    @classmethod
    def make(
        cls,
        settings: Settings,
        *,
        num_clients: int,
        num_prompt_tokens: int,
        num_new_tokens: int,
        num_requests: int,
        num_warm_up_requests: int,
    ) -> "Load":
        model, folder = find_model(settings)
        tokenize = tokenizer_of(folder)
        return cls(
            model,
            num_clients,
            num_new_tokens,
            make_prompts(num_requests, num_prompt_tokens, tokenize, PROMPT_SEED),
            make_prompts(num_warm_up_requests, num_prompt_tokens, tokenize, WARM_UP_SEED),
        )


def measure_in_turns(
    load: Load, num_rounds: int, environment: dict[str, str], progress: Progress
) -> list[Measurement]:
    """Each server once in every round: start it, warm it up, measure, end it."""
    turns = take_turns(num_rounds)
    measurements = []
    for index, kind in enumerate(turns, 1):
        label = f"[{index}/{len(turns)}] {kind.name}"
        _say(progress, f"{label}: starting")
        with running(kind, environment) as server:
            _say(progress, f"{label}: ready after {server.start_seconds:.0f} s, warming up")
            stream(load, load.warm_up_prompts, server, progress)
            _say(progress, f"{label}: measuring {len(load.prompts)} requests")
            measurement = stream(load, load.prompts, server, progress)
        _say(
            progress,
            f"{label}: {measurement.tokens_per_second:.1f} tokens/s, {measurement.seconds:.1f} s",
        )
        measurements.append(measurement)
    return measurements


def take_turns(num_rounds: int) -> list[ServerKind]:
    """A B, B A, A B, ...: each server once in every round, the order reversed each time."""
    rounds = [[SOFTSERVE, VLLM_SERVE], [VLLM_SERVE, SOFTSERVE]]
    return [kind for index in range(num_rounds) for kind in rounds[index % 2]]


def stream(load: Load, prompts: list[str], server: Server, progress: Progress) -> Measurement:
    """Stream a completion of every prompt and measure it.

    Raises:
        RequestFailed: the server did not do what it was asked.
    """
    kind = server.kind
    bodies = [kind.request(load.model, prompt, load.num_new_tokens) for prompt in prompts]
    task = progress.add_task(kind.name, total=len(bodies))
    cpu_before = server.cpu_seconds()
    answers = stream_all(server, bodies, load.num_clients, lambda: progress.advance(task))
    measurement = Measurement.of(kind.name, answers, server.cpu_seconds() - cpu_before)
    progress.remove_task(task)
    expected = len(prompts) * load.num_new_tokens
    if measurement.completion_tokens != expected:
        raise RequestFailed(
            f"{kind.name} was asked for {expected:,} tokens and generated "
            f"{measurement.completion_tokens:,}"
        )
    return measurement


def _say(progress: Progress, line: str) -> None:
    progress.console.print(line, markup=False, highlight=False)


def results_table(measurements: list[Measurement]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("server", no_wrap=True)
    table.add_column("run", justify="right", no_wrap=True)
    for name in ("tokens/s", "TTFT p50", "p99 ms", "ITL p50", "p99 ms", "CPU ms/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for server in (SOFTSERVE.name, VLLM_SERVE.name):
        runs = [(str(i), m) for i, m in enumerate(measurements, 1) if m.server == server]
        for run, measurement in runs:
            table.add_row(server, run, *_cells(measurement), style="dim")
        table.add_row(server, "all", *_cells(pool(m for _, m in runs)), end_section=True)
    return table


def _cells(measurement: Measurement) -> list[str]:
    return [
        f"{measurement.tokens_per_second:.1f}",
        f"{measurement.ttft.p50_ms:,.0f}",
        f"{measurement.ttft.p99_ms:,.0f}",
        f"{measurement.itl.p50_ms:.1f}",
        f"{measurement.itl.p99_ms:.1f}",
        f"{measurement.serving_cpu_ms_per_token:.3f}",
    ]


def ratio_line(ratio: Ratio) -> str:
    rounds = ", ".join(f"{value:.3f}" for value in ratio.rounds)
    return f"softserve / vllm serve: {ratio.overall:.3f} of the throughput (by round: {rounds})"


@cli.command()
def main(
    model: Annotated[
        str | None, typer.Option(help="A folder or hub id; without it, softserve's default.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients that stream at once.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens in each prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens in each completion.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests of one measurement.")] = 128,
    warm_up_requests: Annotated[int, typer.Option(min=1, help="Requests before it.")] = 32,
    rounds: Annotated[
        int, typer.Option(min=1, help="Each server is measured once a round, in turns.")
    ] = 2,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
) -> None:
    """Measure softserve and vLLM's own server side by side; further settings: SOFTSERVE_*."""
    # The end of this process, however it is asked for, is the end of its server.
    # It goes the way of Ctrl-C, which a running event loop knows how to take.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    progress = _progress()
    try:
        load = Load.make(
            Settings() if model is None else Settings(model=model),
            num_clients=clients,
            num_prompt_tokens=prompt_tokens,
            num_new_tokens=new_tokens,
            num_requests=requests,
            num_warm_up_requests=warm_up_requests,
        )
        environment = {} if model is None else {"SOFTSERVE_MODEL": model}
        with progress:
            measurements = measure_in_turns(load, rounds, environment, progress)
    except (ServerFailed, RequestFailed, SoftserveError, OSError, ValueError) as error:
        _say(progress, f"compare_with_vllm_serve: {error}")
        raise typer.Exit(1) from None
    ratio = Ratio.of(
        [m for m in measurements if m.server == SOFTSERVE.name],
        [m for m in measurements if m.server == VLLM_SERVE.name],
    )
    description = {
        "model": load.model,
        "clients": clients,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "requests": requests,
        "rounds": rounds,
    }
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report(description, measurements, ratio), indent=2) + "\n")
    print_report(description, measurements, ratio)


def _progress() -> Progress:
    return Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        # Refreshing is work for the cores that the engine runs on.
        refresh_per_second=1,
        transient=True,
    )


def report(
    description: dict[str, object], measurements: list[Measurement], ratio: Ratio
) -> dict[str, object]:
    """Everything that was measured, for JSON."""
    return {
        "load": description,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "runs": [measurement.figures() for measurement in measurements],
        "ratio": {
            "overall": round(ratio.overall, 4),
            "rounds": [round(r, 4) for r in ratio.rounds],
        },
    }


def print_report(
    description: dict[str, object], measurements: list[Measurement], ratio: Ratio
) -> None:
    """The same for a person, on stdout."""
    console = Console(highlight=False)
    console.print(
        "{model}\n{clients} streaming clients, {requests} requests a run, "
        "{prompt_tokens} tokens in, {new_tokens} out".format_map(description)
    )
    console.print(results_table(measurements))
    console.print(ratio_line(ratio))


if __name__ == "__main__":
    cli()
