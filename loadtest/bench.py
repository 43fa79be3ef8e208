"""softserve beside vLLM's own server, measured with vLLM's own benchmark client.

    make bench
    make bench ARGS="--clients 32 --seconds 20 --rounds 1"

The two take turns (A B, B A, ...), so that what drifts on the machine meets both alike: one server
is started, gets a load for each number of clients, and is ended before the other starts. A load is
the same requests, arriving at the same times, for both.
"""

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.console import Console

from app.engine.vllm.environment import prepare_environment
from app.errors import SoftserveError
from app.settings import Settings
from loadtest.comparison import Run, RunFailed, by_clients, table_of
from loadtest.harness import print_table
from loadtest.machine import describe_machine
from loadtest.servers import HOST, SOFTSERVE, VLLM_SERVE, Server, ServerFailed, ServerKind, running
from loadtest.vllm_serve import model_and_arguments
from loadtest.workload import Load, Workload

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run_in_turns(
    kinds: Sequence[ServerKind],
    workload: Workload,
    measure: Callable[[Server, Load], Run],
    *,
    clients: Sequence[int],
    seconds: float,
    rounds: int,
) -> list[Run]:
    """Measure each server once in every round, the order reversed each time.

    The first server's warm-up says how many requests last at least `seconds`; both get those.

    Raises:
        RunFailed: a server did not do what it was asked.
        ServerFailed: one did not start.
    """
    turns = [kind for index in range(rounds) for kind in kinds[:: -1 if index % 2 else 1]]
    loads: dict[int, Load] = {}
    runs = []
    for turn, kind in enumerate(turns, 1):
        say(f"[{turn}/{len(turns)}] {kind.name}: starting")
        with running(kind, {}) as server:
            say(f"[{turn}/{len(turns)}] {kind.name}: ready after {server.start_seconds:.0f} s")
            for num_clients in clients:
                warm_up = measure(server, workload.warm_up(num_clients))
                if num_clients not in loads:
                    # A warm-up of less than a second has its peak in what is left of that second.
                    peak = max(warm_up.peak_tokens_per_second, warm_up.tokens_per_second)
                    loads[num_clients] = workload.lasting(seconds, num_clients, peak)
                runs.append(measure(server, loads[num_clients]))
                say(f"[{turn}/{len(turns)}] {described(runs[-1])}")
    return runs


def described(run: Run) -> str:
    return (
        f"{run.server}, clients: {run.clients}: {run.requests:,} requests in {run.seconds:.1f} s, "
        f"{run.tokens_per_second:,.1f} tokens/s"
    )


def say(line: str) -> None:
    Console(stderr=True).print(line, markup=False, highlight=False)


@cli.command()
def main(
    clients: Annotated[
        list[int], typer.Option(min=1, help="Requests at a time; may be repeated.")
    ] = [1, 8, 32, 128],  # noqa: B006 (typer copies it)
    seconds: Annotated[float, typer.Option(min=1, help="A run lasts at least so long.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Each server is measured once a round.")] = 2,
    prompt_tokens: Annotated[
        tuple[int, int], typer.Option(help="Fewest and most tokens of a prompt.")
    ] = (32, 96),
    new_tokens: Annotated[
        tuple[int, int], typer.Option(help="Fewest and most tokens of a completion.")
    ] = (32, 96),
    json_file: Annotated[
        Path, typer.Option("--json", help="Every figure is written to this file.")
    ] = Path("results/bench.json"),
) -> None:
    """Measure softserve beside vLLM's own server; settings (the model, ...): SOFTSERVE_*."""
    # The end of this process, however it is asked for, is the end of its server.
    # It goes the way of Ctrl-C, which a running event loop knows how to take.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    settings = Settings()
    prepare_environment(settings)
    # The loopback address is never behind a proxy; vLLM's client has to be told.
    no_proxy = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = f"{no_proxy},{HOST}"
    try:
        model, arguments = model_and_arguments(settings)
        from transformers import AutoTokenizer

        from loadtest.vllm_client import measure

        tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
        runs = run_in_turns(
            (SOFTSERVE, VLLM_SERVE),
            Workload(tokenizer.encode, prompt_tokens, new_tokens),
            partial(measure, model=model, tokenizer=tokenizer),
            clients=clients,
            seconds=seconds,
            rounds=rounds,
        )
    except (RunFailed, ServerFailed, SoftserveError, OSError, ValueError) as error:
        say(f"bench: {error}")
        raise typer.Exit(1) from None
    asked = {
        "model": model,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "seconds": seconds,
        "rounds": rounds,
        "engine_arguments": arguments,
    }
    report(asked, runs, json_file)


def report(asked: dict[str, object], runs: Sequence[Run], json_file: Path) -> None:
    """A table for each number of clients on stdout, and everything in a file."""
    machine = describe_machine()
    compared = by_clients(runs, SOFTSERVE.name, VLLM_SERVE.name)
    figures = {"machine": machine, **asked, "compared": compared, "runs": runs}
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_bytes(to_json(figures, indent=2, inf_nan_mode="null"))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    typer.echo(f"{asked['model']} on {machine['cores']} cores of {machine['cpu']}; {versions}\n")
    for clients, comparisons in compared.items():
        print_table(table_of(f"clients: {clients}", comparisons, SOFTSERVE.name, VLLM_SERVE.name))


if __name__ == "__main__":
    cli()
