"""What the adapters that ship gain on held-out examples, measured through a running server.

    .venv/bin/python scripts/evaluate_adapters.py [--url http://127.0.0.1:8000]

Beside each adapter stands the base model: with the adapter's own prompt, with an instruction in its
chat template, and with an instruction and examples of the training data. Decoding is greedy.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import httpx
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer

DATA = Path(__file__).resolve().parent.parent / "adapters" / "data"
REQUESTS_AT_ONCE = 16
REQUEST_TIMEOUT_SECONDS = 300.0

INTENTS = ("billing", "delivery", "technical", "account", "praise")
INTENT_INSTRUCTION = (
    "Classify the customer's message. Answer with one word: billing, delivery, technical, account "
    "or praise."
)
SUMMARY_INSTRUCTION = "Summarize the dialogue in one or two short sentences."
ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)

Example = dict[str, str]
Body = dict[str, Any]
Scores = dict[str, float]
Generate = Callable[[Body], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to solve a task: what is made of an example's prompt, and the controls beside it."""

    name: str
    controls: Body
    prompt: Callable[[str], str] = str

    def body(self, prompt: str) -> Body:
        return {"prompt": self.prompt(prompt), **self.controls}


@dataclass(frozen=True, slots=True)
class Task:
    """Held-out examples, who tries them, and how a completion is scored against the reference."""

    name: str
    examples: list[Example]
    contestants: list[Contestant]
    score: Callable[[str, str], Scores]


cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    url: Annotated[
        str, typer.Option(envvar="SOFTSERVE_URL", help="The server.")
    ] = "http://127.0.0.1:8000",
) -> None:
    """Measure what the adapters that ship gain on held-out examples, through a running server."""
    try:
        table = asyncio.run(evaluate_through(url))
    except httpx.TransportError as error:
        fail(f"{url} does not answer ({error!r}): start it with make serve, or give --url")
    except httpx.HTTPStatusError as error:
        fail(f"{url} refused a request: {error.response.text}")
    Console().print(table)


def fail(message: str) -> None:
    Console(stderr=True).print(message, style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


async def evaluate_through(url: str) -> Table:
    places = asyncio.Semaphore(REQUESTS_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_SECONDS) as client:

        async def generate(body: Body) -> str:
            async with places:
                answer = await client.post("/generate", json=body)
            answer.raise_for_status()
            return str(answer.json()["completions"][0]["text"])

        with progress_bar() as progress:
            return await evaluate(generate, progress)


async def evaluate(generate: Generate, progress: Progress) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    table.add_column("with", no_wrap=True)
    for measure in MEASURES:
        table.add_column(measure, justify="right")
    for task in (intent_task(), summary_task()):
        for contestant in task.contestants:
            scores = await compete(task, contestant, generate, progress)
            cells = [f"{scores[m]:.1%}" if m in scores else "" for m in MEASURES]
            table.add_row(task.name, contestant.name, *cells)
        table.add_section()
    return table


async def compete(
    task: Task, contestant: Contestant, generate: Generate, progress: Progress
) -> Scores:
    """The mean scores of one contestant over all examples."""
    bar = progress.add_task(f"{task.name}: {contestant.name}", total=len(task.examples))

    async def solve(example: Example) -> Scores:
        completion = await generate(contestant.body(example["prompt"]))
        progress.advance(bar)
        return task.score(completion, example["completion"])

    try:
        async with asyncio.TaskGroup() as group:
            solving = [group.create_task(solve(example)) for example in task.examples]
    except ExceptionGroup as failures:
        # The first is the reason of the others.
        raise failures.exceptions[0] from None
    results = [one.result() for one in solving]
    return {measure: fmean(scores[measure] for scores in results) for measure in results[0]}


def intent_task() -> Task:
    controls = {"max_new_tokens": 16}
    training = read("support-intent.training")
    by_intent = [[e for e in training if e["completion"] == f" {intent}"] for intent in INTENTS]
    # Mixed: after two examples of one intent in a row, it only answers with that one.
    shots = [examples[place] for place in range(2) for examples in by_intent]
    return Task(
        "intent",
        read("support-intent.held-out"),
        [
            *base_model(controls, INTENT_INSTRUCTION, shots),
            Contestant("support-intent-lora", {**controls, "adapter": "support-intent-lora"}),
            Contestant(
                "support-intent-prompt", {**controls, "soft_prompt": "support-intent-prompt"}
            ),
        ],
        accuracy,
    )


def summary_task() -> Task:
    controls = {"max_new_tokens": 80}
    return Task(
        "summary",
        read("dialogue-summary.held-out"),
        [
            *base_model(controls, SUMMARY_INSTRUCTION, read("dialogue-summary.training")[:3]),
            Contestant("dialogue-summary-lora", {**controls, "adapter": "dialogue-summary-lora"}),
        ],
        rouge,
    )


def base_model(controls: Body, instruction: str, shots: list[Example]) -> list[Contestant]:
    """The base model alone, and with the help that does it most good."""
    shown = "\n\n".join(shot["prompt"] + shot["completion"] for shot in shots)
    return [
        Contestant("base model, alone", controls),
        Contestant(
            "base model, zero-shot",
            {**controls, "use_chat_template": True},
            lambda prompt: f"{without_last_line(prompt)}\n\n{instruction}",
        ),
        Contestant(
            f"base model, {len(shots)}-shot",
            {**controls, "stop": "\n"},
            lambda prompt: f"{instruction}\n\n{shown}\n\n{prompt}",
        ),
    ]


def without_last_line(prompt: str) -> str:
    """In a chat the instruction takes the place of `Intent:` and `Summary:`."""
    return prompt.rpartition("\n")[0].strip()


def read(name: str) -> list[Example]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def accuracy(completion: str, reference: str) -> Scores:
    """Right where the first intent that is named, in whatever words around it, is the right one."""
    named = re.search("|".join(INTENTS), completion.lower())
    return {"accuracy": float(named is not None and named[0] == reference.strip())}


def rouge(completion: str, reference: str) -> Scores:
    """F1 of the completion's first paragraph against the one reference, after stemming."""
    paragraph = completion.strip().partition("\n\n")[0]
    scores = ROUGE.score(reference.strip(), paragraph)
    return {
        "ROUGE-1": scores["rouge1"].fmeasure,
        "ROUGE-2": scores["rouge2"].fmeasure,
        "ROUGE-L": scores["rougeL"].fmeasure,
    }


MEASURES = ("accuracy", "ROUGE-1", "ROUGE-2", "ROUGE-L")


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    cli()
