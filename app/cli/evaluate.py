"""`softserve evaluate`: every variant of a prompt over a file of data, through a running server."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.connection import DEFAULT_URL, Json, Key, Url, connected
from app.cli.console import fail
from app.cli.evaluation_tables import print_comparison
from app.cli.options import flag, value_of
from app.cli.templates import template_in
from app.evaluation.comparison import compare
from app.evaluation.data import Row, read_rows, sort_out
from app.evaluation.measures import METRICS, EvaluationError, no_metric
from app.evaluation.report import Sample, html_report
from app.evaluation.runner import Answered, Question, ask_all
from app.evaluation.variants import Variant, combine, is_random, key_of, name_of
from softserve.client import AsyncClient, Client, ClientError, InvalidRequest
from softserve.schema.controls import AdapterChoice
from softserve.schema.icl import RenderBody
from softserve.schema.templates import OUTPUT, Template
from softserve.schema.versions import short

# A busy server is asked again; so is one that starts anew.
RETRY_SECONDS = 600.0
NO_ADAPTER = "none"
ADAPTER_FIELDS = frozenset(AdapterChoice.model_fields)
# How a row is asked is no control, and how many completions it has say --samples.
CONTROLS = {
    name: field
    for name, field in RenderBody.model_fields.items()
    if name not in ("template", "inputs", "examples", "shots", "n")
}
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
    soft_prompt: Annotated[
        str | None, typer.Option(help="Soft prompts; else the template's: none,A.")
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(help="Temperatures; else the template's: 0,0.7.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONTROL=A,B",
            help="Any other control, as top_k=1,40; a list in JSON where a value has a comma. "
            "May be repeated.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Completions a row, of variants that sample.")
    ] = 1,
    metrics: Annotated[str, typer.Option(help=f"Any of {','.join(METRICS)}.")] = "rouge,bleu,exact",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to use, from the first.")] = None,
    reference: Annotated[str, typer.Option(help="The field with the reference.")] = OUTPUT,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling and of the bootstrap.")] = 0,
    results: Annotated[
        Path, typer.Option(help="Answers, written as they come; those there are not asked again.")
    ] = Path("evaluation.jsonl"),
    out: Annotated[Path | None, typer.Option(help="An HTML report.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    try:
        metric_names = _metrics(metrics)
        with connected(url, key) as client:
            templates = {_stem(each): _find_template(client, each) for each in _list(template)}
            given = {"adapter": adapter, "soft_prompt": soft_prompt, "temperature": temperature}
            varied = _varied(given, vary or [])
            for name in ADAPTER_FIELDS & varied.keys():
                varied[name] = [_pinned_adapter(client, each) for each in varied[name]]
            model = client.info().model
        variants = combine(list(templates), {"shots": list(map(_shots, _list(shots))), **varied})
        _check_samples(samples, variants, templates)
        variables = {each for it in templates.values() for each in it.template.input_variables}
        rows, left_out = sort_out(read_rows(data, limit), sorted(variables), reference)
        references = [row.fields[reference] for row in rows]

        def question(variant: Variant, row: Row) -> Question:
            pinned = templates[variant.template]
            inputs = row.inputs(pinned.template.input_variables)
            own = pinned.template.sampling_given()
            body = variant.body(inputs, own, seed, samples) | {"template": pinned.in_request}
            return Question(key_of(model, body, row.fields[reference]), body, row.line)

        questions = [[question(variant, row) for row in rows] for variant in variants]
        answers = asyncio.run(_ask_all(url, key, questions, results, concurrency))
        _tell_left_out(left_out | _skipped(questions, answers))
        names = [name_of(variant, variants) for variant in variants]
        comparison = compare(names, answers, references, metric_names, seed)
        if as_json:
            typer.echo(json.dumps(asdict(comparison), indent=2, ensure_ascii=False))
        else:
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
    async with AsyncClient(
        url,
        key,
        timeout_seconds=None,
        retry_seconds=RETRY_SECONDS,
        max_connections=concurrency,
    ) as client:
        with progress:
            task = progress.add_task("asking", total=len(flat))
            answers = await ask_all(
                flat, partial(_ask, client), results, concurrency, lambda: progress.advance(task)
            )
    return [[answers[each.key] for each in of_variant] for of_variant in questions]


async def _ask(client: AsyncClient, question: Question) -> Answered:
    """One answer."""
    try:
        answer = await client.icl(**question.body)
    # What is wrong with one row may be right with the next.
    except InvalidRequest as error:
        return Answered(question.key, [], skipped=str(error))
    (prompt,) = answer.prompts
    return Answered(
        key=question.key,
        completions=[completion.text for completion in answer.completions],
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
        Sample(
            question.body["inputs"],
            reference,
            ["\n—\n".join(answer.completions) for answer in of_row],
        )
        for question, reference, of_row in islice(rows, NUM_SAMPLES)
    ]


def _list(text: str) -> list[str]:
    """What stands between commas, or the items of a list in JSON, each as it is written."""
    if text.startswith("["):
        try:
            return [
                each if isinstance(each, str) else json.dumps(each) for each in json.loads(text)
            ]
        except ValueError as error:
            raise EvaluationError(f"{text} is no list in JSON ({error})") from None
    return [each.strip() for each in text.split(",") if each.strip()]


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


def _varied(given: Mapping[str, str | None], vary: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each control, from the options of its own and from --vary."""
    texts = {name: (flag(name), text) for name, text in given.items() if text is not None}
    for each in vary:
        name, equals, text = each.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in CONTROLS:
            raise EvaluationError(
                f"--vary has {each!r}: write CONTROL=A,B, with one of {', '.join(CONTROLS)}"
            )
        if name in texts:
            raise EvaluationError(f"{name} is varied twice: give all its values at once")
        texts[name] = (f"--vary {name}", text)
    return {name: _values(name, *texts[name]) for name in texts}


def _values(name: str, option: str, text: str) -> list[Any]:
    values: list[Any] = []
    for each in _list(text):
        if name in ADAPTER_FIELDS and each == NO_ADAPTER:
            values.append(None)
            continue
        try:
            values.append(value_of(CONTROLS[name], each))
        except ValueError as error:
            raise EvaluationError(f"{option} has {each!r}: it {error}") from None
    if not values:
        raise EvaluationError(f"{option} is empty: give values, as in {name}=A,B")
    return values


def _check_samples(
    samples: int, variants: Sequence[Variant], templates: Mapping[str, PinnedTemplate]
) -> None:
    sampled = (
        is_random({**templates[each.template].template.sampling_given(), **each.fields})
        for each in variants
    )
    if samples > 1 and not any(sampled):
        raise EvaluationError(
            f"--samples {samples} would repeat one text, because every variant is greedy: give a "
            "temperature above 0"
        )


def _stem(template: str) -> str:
    return Path(template).stem if template.endswith(".yaml") else template


def _find_template(client: Client, name: str) -> PinnedTemplate:
    """A template of this machine or of the server, pinned: it may change meanwhile."""
    if name.endswith(".yaml"):
        here = template_in(Path(name))
        return PinnedTemplate(here.model_dump(mode="json", exclude_defaults=True), here)
    bare, _, version = name.partition("@")
    found = client.templates.show(bare)
    if found.template is None:
        raise EvaluationError(f"the template {bare} is not served: {found.rejected}")
    return PinnedTemplate(f"{bare}@{version or found.live}", found.template)


def _pinned_adapter(client: Client, name: str | None) -> str | None:
    """An adapter, or a task of a soft prompt, of the version that is live now."""
    if name is None or "@" in name:
        return name
    bare, hash_, task = name.partition("#")
    found = client.adapters.show(bare)
    return name if found.live is None else f"{bare}@{short(found.live)}{hash_}{task}"


def _write(file: Path, content: str) -> None:
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{file} cannot be written ({error.strerror})") from error
