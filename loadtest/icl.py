"""What a shared prefix is worth: the first request on a 5-shot template, and the second.

    .venv/bin/python -m loadtest.icl --help

Each round has a template of its own, so that the first request finds nothing in the prefix cache.
The second has other inputs, and shares what comes before them.
"""

import json
import signal
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.templates.source import read_template
from loadtest.servers import HOST, SOFTSERVE, running
from softserve.schema.templates import Template

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
NUM_SHOTS = 5
PIPE_WIDTH = 120
QUERIES = (
    "Mia: Is the meeting at ten?\nPaul: At eleven, in the small room.",
    "Ole: Did you feed the cat?\nAda: Yes, before I left.",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request took, and what it found in the prefix cache."""

    ttft_seconds: float
    prompt_tokens: int
    cached_tokens: int


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Templates of each kind.")] = 5,
) -> None:
    """Compare the times to the first token of a template's first and second request."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shipped = _shipped()
    long = [{**each, "dialogue": _longer(each["dialogue"])} for each in shipped.examples]
    kinds = {
        "dialogue-summary, as it ships": shipped,
        "with dialogues of three times the length": shipped.model_copy(update={"examples": long}),
    }
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"{NUM_SHOTS} shots", no_wrap=True)
    for name in ("prompt tokens", "cached", "first TTFT", "second TTFT", "ratio", "each round"):
        table.add_column(name, justify="right", no_wrap=True)
    with (
        running(SOFTSERVE, {}) as server,
        httpx.Client(
            base_url=f"http://{HOST}:{server.port}", trust_env=False, timeout=300.0
        ) as client,
    ):
        _pair(client, shipped.model_copy(update={"instruction": "To warm up."}), rounds)
        for name, template in kinds.items():
            pairs = [_pair(client, template, number) for number in range(rounds)]
            table.add_row(name, *_figures(pairs))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(table)


def _shipped() -> Template:
    template = read_template(TEMPLATES / "dialogue-summary.yaml")
    return template.model_copy(update={"warm": False})


def _longer(dialogue: str) -> str:
    return "\n".join([dialogue] * 3)


def _pair(client: httpx.Client, template: Template, number: int) -> tuple[Asked, Asked]:
    """The first two requests on a template that nobody has used before."""
    instruction = f"Round {number}. {template.instruction}"
    template = template.model_copy(update={"instruction": instruction})
    body = template.model_dump(mode="json", exclude_defaults=True)
    client.put("/icl/templates/measured", json=body).raise_for_status()
    first, second = (_ask(client, query) for query in QUERIES)
    return first, second


def _ask(client: httpx.Client, dialogue: str) -> Asked:
    body = {
        "template": "measured",
        "inputs": {"dialogue": dialogue},
        "shots": NUM_SHOTS,
        "max_new_tokens": 8,
        "ignore_eos": True,
        "stop": [],
        "stream": True,
    }
    usage: dict[str, Any] = {}
    started, ttft = time.perf_counter(), None
    with client.stream("POST", "/icl/generate", json=body) as response:
        for line in _lines(response.iter_bytes()):
            if line.startswith(b"data: {"):
                ttft = ttft or time.perf_counter() - started
                usage = json.loads(line.removeprefix(b"data: ")).get("usage", usage)
    assert ttft is not None, "no answer"
    return Asked(ttft, usage["prompt_tokens"], usage["cached_tokens"])


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """As they come. httpx's `iter_lines` would end one at a U+2028 in a completion."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _figures(pairs: list[tuple[Asked, Asked]]) -> list[str]:
    firsts = [first.ttft_seconds for first, _ in pairs]
    seconds = [second.ttft_seconds for _, second in pairs]
    ratios = [second / first for first, second in zip(firsts, seconds, strict=True)]
    _, second = pairs[0]
    return [
        f"{second.prompt_tokens}",
        f"{second.cached_tokens}",
        f"{statistics.median(firsts) * 1000:.0f} ms",
        f"{statistics.median(seconds) * 1000:.0f} ms",
        f"{statistics.median(ratios):.2f}x",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
    ]


if __name__ == "__main__":
    typer.run(main)
