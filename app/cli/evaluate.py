"""`softserve evaluate`: every variant of a prompt over a file of data, through a running server."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.adapters import ADAPTERS
from app.cli.connection import DEFAULT_URL, Key, Url, connected
from app.cli.console import fail
from app.cli.evaluation_tables import print_comparison
from app.cli.templates import TEMPLATES, body_of, template_in
from app.evaluation.comparison import compare
from app.evaluation.data import Row, read_rows, sort_out
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
# What is wrong with one row may be right with the next.
OF_A_ROW = ("context_window_exceeded", "invalid_request")
BUSY_PAUSE_SECONDS = 1.0
NUM_SAMPLES = 8
MAX_LEFT_OUT_SHOWN = 10

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
    key: Key = None,
) -> None:
    try:
        metric_names = _metrics(metrics)
        with connected(url, key) as client:
            templates = {_stem(each): _find_template(client, each) for each in _list(template)}
            adapters = [_pinned_adapter(client, each) for each in _list(adapter)]
            model = client.send(Call("GET", "/info", ModelInfo)).model
        variants = combine(
            list(templates),
            [_shots(each) for each in _list(shots)],
            adapters or [None],
            [_temperature(each) for each in _list(temperature)] or [None],
        )
        variables = {each for it in templates.values() for each in it.template.input_variables}
        rows, left_out = sort_out(read_rows(data, limit), sorted(variables), reference)
        references = [row.fields[reference] for row in rows]

        def question(variant: Variant, row: Row) -> Question:
            pinned = templates[variant.template]
            inputs = row.inputs(pinned.template.input_variables)
            body = variant.body(inputs, seed) | {"template": pinned.in_request}
            return Question(key_of(model, body, row.fields[reference]), body, row.line)

        questions = [[question(variant, row) for row in rows] for variant in variants]
        answers = asyncio.run(_ask_all(url, key, questions, results, concurrency))
        _tell_left_out(left_out | _skipped(questions, answers))
        names = [name_of(variant, variants) for variant in variants]
        comparison = compare(names, answers, references, metric_names, seed)
        print_comparison(comparison)
        if out is not None:
            title = f"{template} on {data.name}, {model}"
            _write(out, html_report(comparison, _samples(questions[0], references, answers), title))
    except (ClientError, EvaluationError) as error:
        raise fail(str(error)) from None


async def _ask_all(
    url: str,
    key: str | None,
    questions: Sequence[Sequence[Question]],
    results: Path,
    concurrency: int,
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
    async with AsyncClient(url, key, max_connections=concurrency) as client:
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
            if error.type in OF_A_ROW:
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


def _skipped(
    questions: Sequence[Sequence[Question]], answers: Sequence[Sequence[Answered]]
) -> dict[int, str]:
    """Why the server could not answer a row, by its line."""
    pairs = (
        pair for each in zip(questions, answers, strict=True) for pair in zip(*each, strict=True)
    )
    return {question.line: f"is refused: {why}" for question, it in pairs if (why := it.skipped)}


def _tell_left_out(reasons: Mapping[int, str]) -> None:
    for line in sorted(reasons)[:MAX_LEFT_OUT_SHOWN]:
        typer.echo(f"softserve: left out: line {line} {reasons[line]}", err=True)
    if len(reasons) > MAX_LEFT_OUT_SHOWN:
        typer.echo(f"softserve: and {len(reasons) - MAX_LEFT_OUT_SHOWN} more lines", err=True)


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


def _write(file: Path, content: str) -> None:
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{file} cannot be written ({error.strerror})") from error
