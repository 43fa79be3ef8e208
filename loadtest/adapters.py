"""What adapters cost: soft prompts, many in one batch, a thousand registered.

    .venv/bin/python -m loadtest.adapters --help

Each command prints ratios of one run. What is compared takes turns (A B, B A, ...), so that what
drifts on the machine meets both alike. The adapters are made for the run, with random weights.
"""

import time
from itertools import cycle
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest.clients import streaming_body
from loadtest.harness import Bench, Bodies, Results, bench, client_of, print_table
from loadtest.measurements import pool
from loadtest.prompts import make_prompts
from loadtest.random_adapters import make_loras, make_soft_prompts
from loadtest.servers import Server
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

NUM_VIRTUAL_TOKENS = 20
RANK = 8
Rounds = Annotated[int, typer.Option(min=1, help="How often each is measured.")]

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@cli.command()
def soft_prompt(rounds: Rounds = 5, clients: int = 64, new_tokens: int = 32) -> None:
    """A soft prompt of 20 virtual tokens, against a plain request of equal total length."""
    with bench() as this, this.server() as server:
        (folder,) = make_soft_prompts(this.model, this.folder, 1, NUM_VIRTUAL_TOKENS)
        add(server, "prompt", folder)
        for num_tokens, is_cached in ((3400, True), (64, False)):
            loads = {
                "plain": plain_bodies(
                    this, rounds, clients, num_tokens + NUM_VIRTUAL_TOKENS, new_tokens, is_cached
                ),
                "soft prompt": plain_bodies(
                    this, rounds, clients, num_tokens, new_tokens, is_cached, soft_prompt="prompt"
                ),
            }
            results = this.measure_in_turns(server, loads, clients)
            what = "prefix-cached " if is_cached else ""
            print_results(
                f"{clients} at once, a {what}prompt of {num_tokens:,} tokens, {new_tokens} new",
                results,
                against="plain",
            )


def plain_bodies(
    this: Bench,
    num_rounds: int,
    num_requests: int,
    num_tokens: int,
    num_new_tokens: int,
    is_cached: bool,
    **fields: str,
) -> list[Bodies]:
    """For each round, and one to warm up: requests with the same prompt, or with their own."""
    if is_cached:
        (prompt,) = make_prompts(1, num_tokens, this.tokenize, seed=0)
        prompts = [[prompt] * num_requests] * (num_rounds + 1)
    else:
        prompts = [
            make_prompts(num_requests, num_tokens, this.tokenize, seed)
            for seed in range(num_rounds + 1)
        ]
    return [[streaming_body(each, num_new_tokens, **fields) for each in batch] for batch in prompts]


@cli.command()
def without_soft_prompts(rounds: Rounds = 4, clients: int = 32, requests: int = 96) -> None:
    """Requests without a soft prompt, against a server with soft prompts turned off."""
    on, off = {"max_virtual_tokens": 256}, {"max_virtual_tokens": 0}
    with bench() as this:
        prompts = make_prompts(requests, 64, this.tokenize, seed=0)
        bodies = [streaming_body(prompt, 64) for prompt in prompts]
        results: Results = {"off": [], "on": []}
        for turn in (off, on, on, off):
            name = "on" if turn is on else "off"
            with this.server(**turn) as server:
                measured = this.measure_in_turns(server, {name: _repeated(bodies, rounds)}, clients)
            results[name] += measured[name]
    print_results(f"{clients} clients, 64 tokens in, 64 out", results, against="off")


@cli.command()
def mixed(
    rounds: Rounds = 4,
    clients: int = 64,
    requests: int = 128,
    max_loras: int = 64,
    counts: str = "1,8,64",
) -> None:
    """Base requests, then 1, 8 and 64 LoRAs of rank 8 in one load, against a server without LoRAs.

    Above `--max-loras` different ones, a batch waits for a place.
    """
    with bench() as this:
        prompts = make_prompts(requests, 64, this.tokenize, seed=0)
        off = [streaming_body(prompt, 64) for prompt in prompts]
        loads: dict[str, Bodies] = {"base, LoRAs on": off}
        for count in map(int, counts.split(",")):
            names = cycle(f"lora-{index}" for index in range(count))
            loads[f"{count} mixed"] = [
                streaming_body(prompt, 64, adapter=next(names)) for prompt in prompts
            ]
        folders = make_loras(this.model, this.folder, max(map(int, counts.split(","))), RANK)
        results: Results = {"LoRAs off": []}
        for is_on in (False, True, True, False):
            with this.server(max_loras=max_loras if is_on else 0) as server:
                turn = loads if is_on else {"LoRAs off": off}
                if is_on:
                    for folder in folders:
                        add(server, folder.name, folder)
                repeated = {name: _repeated(bodies, rounds) for name, bodies in turn.items()}
                for name, measurements in this.measure_in_turns(server, repeated, clients).items():
                    results.setdefault(name, []).extend(measurements)
    print_results(f"{clients} clients, 64 tokens in, 64 out", results, against="LoRAs off")


def _repeated(bodies: Bodies, num_rounds: int) -> list[Bodies]:
    """For one of a server's two turns: half of the rounds, and one that warms up."""
    return [bodies] * (-(-num_rounds // 2) + 1)


@cli.command()
def dora(rounds: Rounds = 4, clients: int = 16, requests: int = 32) -> None:
    """A DoRA of rank 8 on all linear modules, against a LoRA of the same: to add, and to run."""
    with bench() as this, this.server() as server:
        adding: dict[str, float] = {}
        for name in ("LoRA", "DoRA"):
            parent = this.folder / name
            parent.mkdir()
            (folder,) = make_loras(
                this.model, parent, 1, RANK, target_modules="all-linear", use_dora=name == "DoRA"
            )
            started = time.perf_counter()
            add(server, name, folder)
            adding[name] = time.perf_counter() - started
        prompts = make_prompts(requests, 64, this.tokenize, seed=0)
        named = {"base": {}, "LoRA": {"adapter": "LoRA"}, "DoRA": {"adapter": "DoRA"}}
        loads = {
            name: [[streaming_body(prompt, 64, **fields) for prompt in prompts]] * (rounds + 1)
            for name, fields in named.items()
        }
        results = this.measure_in_turns(server, loads, clients)
    for name, seconds in adding.items():
        typer.echo(f"a {name} is live after {seconds:.2f} s")
    print_results(f"{clients} clients, 64 tokens in, 64 out", results, against="LoRA")


@cli.command()
def thousand(count: int = 1000, rank: int = 4) -> None:
    """Many registered adapters: the start, the memory, and a request to each of them."""
    with bench() as this:
        store, source = this.folder / "store", this.folder / "made"
        source.mkdir()
        places = {"adapter_store": store, "adapter_root": source}
        with this.server(**places) as server:
            empty = server.start_seconds, server.resident_mib()
        folders = make_loras(this.model, source, count, rank)
        with this.server(**places) as server:
            task = this.progress.add_task("adding", total=count)
            started = time.perf_counter()
            for folder in folders:
                add(server, folder.name, folder)
                this.progress.advance(task)
            adding = time.perf_counter() - started
        with this.server(**places) as server:
            full = server.start_seconds, server.resident_mib()
            bodies = [streaming_body("Hi", 1, adapter=folder.name) for folder in folders]
            cold = this.measure("one request to each", server, bodies, 1)
            used = server.resident_mib()
        size = sum(file.stat().st_size for file in source.rglob("*.safetensors"))
    typer.echo(f"{count:,} LoRAs of rank {rank} ({size >> 20:,} MiB), added in {adding:.1f} s")
    typer.echo(f"start: {empty[0]:.1f} s with none, {full[0]:.1f} s with {count:,}")
    for name in empty[1]:
        typer.echo(
            f"memory of the {name} process: {empty[1][name]:.0f} MiB with none, "
            f"{full[1][name]:.0f} MiB with {count:,}, {used[name]:.0f} MiB after a request to each"
        )
    typer.echo(
        f"a request that loads its adapter first: {cold.ttft.p50_ms:.0f} ms to the first token "
        f"(median), {cold.ttft.p99_ms:.0f} ms (p99)"
    )


def add(server: Server, name: str, folder: Path) -> str:
    """Upload an adapter; its live version."""
    files = [("file", (file, (folder / file).read_bytes())) for file in (CONFIG_FILE, WEIGHTS_FILE)]
    with client_of(server) as client:
        live: str = client.put(f"/adapters/{name}", files=files).raise_for_status().json()["live"]
    return live


def print_results(title: str, results: Results, against: str) -> None:
    """A row a load, and its ratios to the one named: above 1 is worse, but for tokens/s."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("load", no_wrap=True)
    for name in ("tokens/s", "TTFT p50", "ITL p50", "p99 ms", "time", "each run", "ITL p99"):
        table.add_column(name, justify="right", no_wrap=True)
    base = pool(results[against])
    for name, measurements in results.items():
        whole = pool(measurements)
        ratios = [
            each.seconds / other.seconds
            for each, other in zip(measurements, results[against], strict=True)
        ]
        table.add_row(
            name,
            f"{whole.tokens_per_second:.1f}",
            *(f"{ms:.1f}" for ms in (whole.ttft.p50_ms, whole.itl.p50_ms, whole.itl.p99_ms)),
            f"{whole.seconds / base.seconds:.3f}x",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{whole.itl.p99_ms / base.itl.p99_ms:.2f}x",
        )
    print_table(table)


if __name__ == "__main__":
    cli()
