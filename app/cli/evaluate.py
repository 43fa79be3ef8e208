"""`softserve evaluate`: every variant of a prompt over a file of data, through a running server."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.adapters import ADAPTERS
from app.cli.connection import DEFAULT_URL, Url, connected
from app.cli.console import fail
from app.cli.evaluation_tables import print_comparison
from app.cli.templates import TEMPLATES, body_of, template_in
from app.evaluation.comparison import compare
from app.evaluation.measures import METRICS, EvaluationError, no_metric
from app.evaluation.report import Sample, html_report
from app.evaluation.runner import Answered, Question, ask_all
from app.evaluation.variants import NO_ADAPTER, Variant, combine, key_of, name_of
from softserve.client import PATIENT, AsyncClient, Call, Client, ClientError
from softserve.schema.icl import IclGenerateAnswer
from softserve.schema.server import ModelInfo
from softserve.schema.templates import OUTPUT, Template
from softserve.schema.versions import short

BUSY = ("server_full", "engine_starting")
BUSY_PAUSE_SECONDS = 1.0
NUM_SAMPLES = 8

cli = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class PinnedTemplate:
    """A template, and how a request names it: by its version, or as a whole."""

    in_request: str | dict[str, Any]
    template: Template


@cli.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="JSONL: the template's inputs, and a reference.")],
    template: Annotated[
        str, typer.Option(help="Names on the server, or .yaml files here: A or A,B.")
    ],
    shots: Annotated[str, typer.Option(help="Numbers of shots, or auto: 0,1,2,4.")] = "0,1,3",
    adapter: Annotated[
        str | None,
        typer.Option(help="Adapters, none for the base model; else the template's: none,A."),
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(help="Temperatures; else the template's: 0,0.7.")
    ] = None,
    metrics: Annotated[str, typer.Option(help=f"Any of {','.join(METRICS)}.")] = "rouge,bleu,exact",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to use, from the first.")] = None,
    reference: Annotated[str, typer.Option(help="The field with the reference.")] = OUTPUT,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling and of the bootstrap.")] = 0,
    results: Annotated[
        Path, typer.Option(help="Answers, written as they come; those there are not asked again.")
    ] = Path("evaluation.jsonl"),
    out: Annotated[Path | None, typer.Option(help="An HTML report.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    try:
        metric_names = _metrics(metrics)
        with connected(url) as client:
            templates = {_stem(each): _find_template(client, each) for each in _list(template)}
            adapters = [_pinned_adapter(client, each) for each in _list(adapter)]
            model = client.send(Call("GET", "/info", ModelInfo)).model
        variants = combine(
            list(templates),
            [_shots(each) for each in _list(shots)],
            adapters or [None],
            [_temperature(each) for each in _list(temperature)] or [None],
        )
        rows = _read_data(data, limit)
        references = [
            _field(row, reference, row_number) for row_number, row in enumerate(rows, start=1)
        ]

        def questions_to(variant: Variant) -> list[Question]:
            pinned = templates[variant.template]
            bodies = [
                variant.body(inputs, seed) | {"template": pinned.in_request}
                for inputs in _inputs(rows, pinned.template)
            ]
            return [
                Question(key_of(model, body, wanted), body)
                for body, wanted in zip(bodies, references, strict=True)
            ]

        questions = [questions_to(variant) for variant in variants]
        answers = asyncio.run(_ask_all(url, questions, results, concurrency))
        names = [name_of(variant, variants) for variant in variants]
        comparison = compare(names, answers, references, metric_names, seed)
        print_comparison(comparison)
        if out is not None:
            title = f"{template} on {data.name}, {model}"
            _write(out, html_report(comparison, _samples(questions[0], references, answers), title))
    except (ClientError, EvaluationError) as error:
        raise fail(str(error)) from None


async def _ask_all(
    url: str, questions: Sequence[Sequence[Question]], results: Path, concurrency: int
) -> list[list[Answered]]:
    """The answers to the questions of each variant, with a progress bar."""
    flat = [each for of_variant in questions for each in of_variant]
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    async with AsyncClient(url, max_connections=concurrency) as client:
        with progress:
            task = progress.add_task("asking", total=len(flat))
            answers = await ask_all(
                flat, partial(_ask, client), results, concurrency, lambda: progress.advance(task)
            )
    return [[answers[each.key] for each in of_variant] for of_variant in questions]


async def _ask(client: AsyncClient, question: Question) -> Answered:
    """One answer. A server that is busy is asked again."""
    call = Call("POST", "/icl/generate", IclGenerateAnswer, question.body, PATIENT)
    while True:
        try:
            answer = await client.send(call)
            break
        except ClientError as error:
            if error.type == "context_window_exceeded":
                return Answered(question.key, skipped=str(error))
            if error.type not in BUSY:
                raise
            await asyncio.sleep(BUSY_PAUSE_SECONDS)
    (prompt,) = answer.prompts
    return Answered(
        key=question.key,
        completion=answer.completions[0].text,
        label=None if prompt.classification is None else prompt.classification.best,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        cached_tokens=answer.usage.cached_tokens,
        shots=prompt.shots,
        num_dropped=prompt.num_dropped,
        latency_ms=answer.timings.total,
    )


def _samples(
    questions: Sequence[Question], references: Sequence[str], answers: Sequence[Sequence[Answered]]
) -> list[Sample]:
    """The first rows, with the inputs of the first variant."""
    rows = zip(questions, references, zip(*answers, strict=True), strict=True)
    return [
        Sample(question.body["inputs"], reference, [answer.completion for answer in of_row])
        for question, reference, of_row in islice(rows, NUM_SAMPLES)
    ]


def _list(text: str | None) -> list[str]:
    return [each.strip() for each in (text or "").split(",") if each.strip()]


def _metrics(text: str) -> list[str]:
    names = _list(text)
    for name in names:
        if name not in METRICS:
            raise no_metric(name)
    if not names:
        raise EvaluationError(f"--metrics is empty: choose from {', '.join(METRICS)}")
    return names


def _shots(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise EvaluationError(f"--shots has {text!r}: give numbers, or auto")


def _temperature(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EvaluationError(f"--temperature has {text!r}: give numbers") from None


def _stem(template: str) -> str:
    return Path(template).stem if template.endswith(".yaml") else template


def _find_template(client: Client, name: str) -> PinnedTemplate:
    """A template of this machine or of the server, pinned: it may change meanwhile."""
    if name.endswith(".yaml"):
        here = template_in(Path(name))
        return PinnedTemplate(body_of(here), here)
    bare, _, version = name.partition("@")
    found = client.send(TEMPLATES.show(bare))
    if found.template is None:
        raise EvaluationError(f"the template {bare} is not served: {found.rejected}")
    return PinnedTemplate(f"{bare}@{version or found.live}", found.template)


def _pinned_adapter(client: Client, name: str) -> str:
    if name == NO_ADAPTER or "@" in name:
        return name
    found = client.send(ADAPTERS.show(name))
    return name if found.live is None else f"{name}@{short(found.live)}"


def _read_data(file: Path, limit: int | None) -> list[dict[str, Any]]:
    try:
        # Not splitlines(): a text may hold a U+2028, which JSON leaves as it is.
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        rows = [json.loads(line) for line in lines[:limit]]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{file} cannot be read as JSONL ({error})") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{file} has no rows: give one JSON object a line")
    return rows


def _inputs(rows: Sequence[dict[str, Any]], template: Template) -> list[dict[str, Any]]:
    return [
        {name: _field(row, name, row_number) for name in template.input_variables}
        for row_number, row in enumerate(rows, start=1)
    ]


def _field(row: dict[str, Any], field: str, row_number: int) -> Any:
    if field not in row:
        raise EvaluationError(
            f"row {row_number} has no {field!r}, only {', '.join(row)}: rename its fields, or name "
            "the one of the reference with --reference"
        )
    return row[field]


def _write(file: Path, content: str) -> None:
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{file} cannot be written ({error.strerror})") from error
