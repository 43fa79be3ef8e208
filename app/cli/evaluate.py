"""`softserve evaluate`: every variant of a prompt over a file of data, through a running server."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.console import DEFAULT_URL, Url, fail
from app.cli.evaluation_tables import print_comparison
from app.errors import TemplateRejected
from app.evaluation.comparison import Sample, compare
from app.evaluation.metrics import METRICS, EvaluationError
from app.evaluation.report import html_report
from app.evaluation.runner import Answered, Question, ask_all
from app.evaluation.variants import NO_ADAPTER, Variant, combine, key_of, name_of
from app.templates.source import read_template
from softserve.client import AsyncClient, Client, ClientError
from softserve.schema.adapters import AdapterOut
from softserve.schema.icl import IclGenerateAnswer
from softserve.schema.server import ModelInfo
from softserve.schema.templates import OUTPUT, Template, TemplateOut

BUSY = ("server_full", "engine_starting")
BUSY_PAUSE_SECONDS = 1.0
NUM_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Named:
    """A template, and how a request names it: by its version, or as a whole."""

    reference: str | dict[str, Any]
    template: Template


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
    """Compare ways of prompting: shots, templates, adapters, temperatures."""
    try:
        asked = _metrics(metrics)
        client = Client(url)
        templates = {_stem(each): _find_template(client, each) for each in _list(template)}
        variants = combine(
            list(templates),
            [_shots(each) for each in _list(shots)],
            [_pinned_adapter(client, each) for each in _list(adapter)] or [None],
            [_temperature(each) for each in _list(temperature)] or [None],
        )
        rows = _read_data(data, limit)
        references = [_text(row, reference, place) for place, row in enumerate(rows)]
        model = client.get("/info", ModelInfo).model

        def question(variant: Variant, place: int) -> Question:
            found = templates[variant.template]
            body = variant.body(_inputs(rows[place], found.template, place), seed)
            body["template"] = found.reference
            return Question(key_of(model, body, references[place]), body)

        questions = [[question(each, place) for place in range(len(rows))] for each in variants]
        answers = asyncio.run(_ask_all(url, questions, results, concurrency))
        names = [name_of(variant, variants) for variant in variants]
        comparison = compare(names, answers, references, asked, seed)
        print_comparison(comparison)
        if out is not None:
            samples = [
                Sample(
                    questions[0][place].body["inputs"],
                    references[place],
                    [each[place].completion for each in answers],
                )
                for place in range(min(NUM_SAMPLES, len(rows)))
            ]
            title = f"{template} on {data.name}, {model}"
            _write(out, html_report(comparison, samples, title))
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
    async with AsyncClient(url, concurrency) as client:

        async def ask(question: Question) -> Answered:
            return await _ask(client, question)

        with progress:
            task = progress.add_task("asking", total=len(flat))
            found = await ask_all(flat, ask, results, concurrency, lambda: progress.advance(task))
    return [[found[each.key] for each in of_variant] for of_variant in questions]


async def _ask(client: AsyncClient, question: Question) -> Answered:
    """One answer. A server that is busy is asked again."""
    while True:
        try:
            answer = await client.post("/icl/generate", question.body, IclGenerateAnswer)
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


def _list(text: str | None) -> list[str]:
    return [each.strip() for each in (text or "").split(",") if each.strip()]


def _metrics(text: str) -> list[str]:
    names = _list(text)
    for name in names:
        if name not in METRICS:
            raise EvaluationError(f"there is no metric {name}: choose from {', '.join(METRICS)}")
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


def _find_template(client: Client, name: str) -> Named:
    """A template of this machine or of the server, pinned: it may change meanwhile."""
    if name.endswith(".yaml"):
        try:
            read = read_template(Path(name))
        except OSError as error:
            raise EvaluationError(f"{name} cannot be read ({error.strerror})") from error
        except TemplateRejected as error:
            raise EvaluationError(f"{name} is no template: {error.message}") from error
        return Named(read.model_dump(mode="json", exclude_defaults=True), read)
    bare, _, version = name.partition("@")
    found = client.get(f"/icl/templates/{bare}", TemplateOut)
    if found.template is None:
        raise EvaluationError(f"the template {bare} is not served: {found.rejected}")
    return Named(f"{bare}@{version or found.live}", found.template)


def _pinned_adapter(client: Client, name: str) -> str:
    if name == NO_ADAPTER or "@" in name:
        return name
    found = client.get(f"/adapters/{name}", AdapterOut)
    return name if found.live is None else f"{name}@{found.live[:12]}"


def _read_data(file: Path, limit: int | None) -> list[dict[str, Any]]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines[:limit]]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{file} cannot be read as JSONL ({error})") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{file} has no rows: give one JSON object a line")
    return rows


def _inputs(row: dict[str, Any], template: Template, place: int) -> dict[str, Any]:
    return {name: _text(row, name, place) for name in template.input_variables}


def _text(row: dict[str, Any], field: str, place: int) -> Any:
    if field not in row:
        raise EvaluationError(
            f"row {place + 1} has no {field!r}, only {', '.join(row)}: rename its fields, or name "
            "the one of the reference with --reference"
        )
    return row[field]


def _write(file: Path, content: str) -> None:
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{file} cannot be written ({error.strerror})") from error
