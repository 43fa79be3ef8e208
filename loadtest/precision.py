"""What each precision costs and gains: quality, speed and memory, in one run on one machine.

    python -m loadtest.precision --data dev.jsonl --json results/precision.json

DATA is a JSONL file with texts of 20,480 tokens or more. W8A8 is a checkpoint that
`softserve quantize` makes first. Ratios are to the first precision of the list.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.engine.model.find import find_model
from app.errors import SoftserveError
from app.settings import Settings
from loadtest.clients import RequestFailed, stream_all, streaming_body
from loadtest.measurements import Measurement
from loadtest.next_tokens import NUM_TOKENS, Quality
from loadtest.prompts import make_prompts, tokenizer_of
from loadtest.servers import HOST, SOFTSERVE, Server, ServerFailed, running

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "w8a8")
NUM_PROMPT_TOKENS = 64
NUM_NEW_TOKENS = 64
NUM_LONG_PROMPT_TOKENS = 1500
NUM_LONG_PROMPTS = 3
# The same for all, and enough for 16 sequences.
ENGINE = {"SOFTSERVE_CONTEXT_WINDOW": "2048", "SOFTSERVE_KV_CACHE_GIB": "1"}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Speed:
    """Completion tokens a second, milliseconds to the first token of a long prompt, and bytes."""

    tokens_per_second_alone: float
    tokens_per_second_of_16: float
    ttft_ms: float
    linear_weight_bytes: int
    other_weight_bytes: int
    peak_resident_mib: float


@cli.command()
def main(
    data: Annotated[Path, typer.Option(help="A JSONL file of texts.")],
    model: Annotated[
        str | None, typer.Option(help="A folder or hub id; without it, softserve's default.")
    ] = None,
    precisions: Annotated[
        str, typer.Option(help="Which, in this order; the first is what others compare with.")
    ] = ",".join(PRECISIONS),
    rounds: Annotated[int, typer.Option(min=1, help="How often the speed is measured.")] = 1,
    num_tokens: Annotated[int, typer.Option(help="Tokens of the text.")] = NUM_TOKENS,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
) -> None:
    """Measure the precisions one after the other; further settings: SOFTSERVE_*."""
    # The end of this process, however it is asked for, is the end of its server.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    asked = precisions.split(",")
    try:
        _, folder = find_model(Settings() if model is None else Settings(model=model))
        with tempfile.TemporaryDirectory() as temporary:
            environments = {
                precision: environment_of(precision, folder, Path(temporary)) for precision in asked
            }
            quality = {
                precision: measure_quality(environment, data, Path(temporary), num_tokens, first)
                for precision, environment, first in _with_first(environments)
            }
            speed = [
                {p: measure_speed(environments[p], folder) for p in _in_turns(asked, round_)}
                for round_ in range(rounds)
            ]
    except (ServerFailed, RequestFailed, SoftserveError, OSError, ValueError) as error:
        _say(f"precision: {error}")
        raise typer.Exit(1) from None
    medians = {p: median([measured[p] for measured in speed]) for p in asked}
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "quality": {p: asdict(quality[p]) for p in asked},
            "speed": [{p: asdict(measured[p]) for p in asked} for measured in speed],
        }
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    console = Console(highlight=False, width=120)
    console.print(quality_table(quality), speed_table(medians))


def _with_first(environments: dict[str, Any]) -> Iterator[tuple[str, dict[str, str], bool]]:
    for index, (precision, environment) in enumerate(environments.items()):
        yield precision, environment, index == 0


def _in_turns(precisions: list[str], round_: int) -> list[str]:
    """The order reversed every other round: what drifts on the machine favours neither end."""
    return precisions[::-1] if round_ % 2 else precisions


def environment_of(precision: str, folder: Path, temporary: Path) -> dict[str, str]:
    """The settings that serve the model in a precision; w8a8 is quantized here, on the way."""
    if precision != "w8a8":
        return ENGINE | {"SOFTSERVE_PRECISION": precision, "SOFTSERVE_MODEL": str(folder)}
    out = temporary / f"{folder.name}-w8a8"
    _say("quantizing the model")
    command = [sys.executable, "-m", "app.cli.main", "quantize", str(folder), "--out", str(out)]
    subprocess.run(command, check=True)
    return ENGINE | {"SOFTSERVE_MODEL": str(out)}


def measure_quality(
    environment: dict[str, str], data: Path, temporary: Path, num_tokens: int, first: bool
) -> Quality:
    """Perplexity, and how far the next-token distributions are from those of the first one."""
    command = [
        *(sys.executable, "-m", "loadtest.next_tokens", str(data), str(temporary / "reference")),
        *(f"--num-tokens={num_tokens}", *(["--write"] if first else [])),
    ]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ServerFailed(f"loadtest.next_tokens failed:\n{done.stderr[-2000:]}")
    quality = Quality(**json.loads(done.stdout.splitlines()[-1]))
    _say(f"{environment}: {quality}")
    return quality


def measure_speed(environment: dict[str, str], folder: Path) -> Speed:
    tokenize = tokenizer_of(folder)
    prompts = make_prompts(18, NUM_PROMPT_TOKENS, tokenize, seed=0)
    long_prompts = make_prompts(NUM_LONG_PROMPTS + 1, NUM_LONG_PROMPT_TOKENS, tokenize, seed=1)
    with running(SOFTSERVE, environment) as server:
        # A first round of each kind warms up.
        stream(server, prompts[:16], 16, NUM_NEW_TOKENS)
        of_16 = stream(server, prompts[:16], 16, NUM_NEW_TOKENS)
        stream(server, prompts[16:17], 1, NUM_NEW_TOKENS)
        alone = stream(server, prompts[16:], 1, NUM_NEW_TOKENS)
        stream(server, long_prompts[:1], 1, 1)
        of_long_prompts = stream(server, long_prompts[1:], 1, 1)
        with httpx.Client(trust_env=False) as client:
            weights = client.get(f"http://{HOST}:{server.port}/info").json()["weights"]
        speed = Speed(
            tokens_per_second_alone=alone.tokens_per_second,
            tokens_per_second_of_16=of_16.tokens_per_second,
            ttft_ms=of_long_prompts.ttft.p50_ms,
            linear_weight_bytes=weights["linear_bytes"],
            other_weight_bytes=weights["other_bytes"],
            peak_resident_mib=server.peak_resident_mib(),
        )
    _say(f"{environment}: {speed}")
    return speed


def stream(
    server: Server, prompts: list[str], num_clients: int, num_new_tokens: int
) -> Measurement:
    bodies = [streaming_body(prompt, num_new_tokens) for prompt in prompts]
    answers = stream_all(server, bodies, num_clients, lambda: None)
    return Measurement.of(SOFTSERVE.name, answers)


def median(measured: list[Speed]) -> Speed:
    figures = [asdict(each) for each in measured]
    return Speed(**{name: statistics.median(each[name] for each in figures) for name in figures[0]})


def quality_table(quality: dict[str, Quality]) -> Table:
    table = _table("precision", "perplexity", "change", "KL, nats", "top-1 agreement")
    first = next(iter(quality.values())).perplexity
    for precision, measured in quality.items():
        table.add_row(
            precision,
            f"{measured.perplexity:.4f}",
            f"{measured.perplexity / first - 1:+.2%}",
            f"{measured.kl_divergence:.5f}",
            f"{measured.top_1_agreement:.2%}",
        )
    return table


def speed_table(speed: dict[str, Speed]) -> Table:
    names = ("alone tok/s", "16 tok/s", "TTFT ms", "linear MB", "other MB", "peak MiB")
    table = _table("precision", *names)
    first = asdict(next(iter(speed.values())))
    scales = (1, 1, 1, 1e6, 1e6, 1)
    for precision, measured in speed.items():
        figures = asdict(measured)
        table.add_row(
            precision,
            *(
                f"{figures[name] / scale:,.1f} ({figures[name] / first[name]:.2f}x)"
                for name, scale in zip(figures, scales, strict=True)
            ),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _say(line: str) -> None:
    Console(stderr=True).print(line, markup=False, highlight=False)


if __name__ == "__main__":
    cli()
