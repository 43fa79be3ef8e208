"""Ask every question of an evaluation once, many at a time; what was answered before is kept.

Every answer is a line of JSON in a file, written as it comes. So an evaluation that was interrupted
goes on where it stopped, and one with a variant more asks only for that.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from app.evaluation.measures import EvaluationError
from app.jsonl import JSON_WHITESPACE, lines_of


@dataclass(frozen=True, slots=True)
class Question:
    """One row, that of a `line`, put to one variant; `key` tells it from every other."""

    key: str
    body: dict[str, Any]
    line: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """What a server answered; `skipped` is why it could not, if the inputs are to blame."""

    key: str
    # Several where it was sampled.
    completions: list[str]
    label: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    shots: int = 0
    num_dropped: int = 0
    latency_ms: float = 0.0
    skipped: str | None = None


Ask = Callable[[Question], Awaitable[Answered]]

_ANSWERED = TypeAdapter(Answered)


async def ask_all(
    questions: Sequence[Question],
    ask: Ask,
    results: Path,
    concurrency: int,
    on_answer: Callable[[], object],
) -> dict[str, Answered]:
    """The answers, by key. `on_answer` is called for each, found or fresh.

    Raises:
        EvaluationError: the file of results cannot be read or written.
    """
    answers = _read(results)
    remaining = iter([question for question in questions if question.key not in answers])
    for question in questions:
        if question.key in answers:
            on_answer()
    try:
        with results.open("a", encoding="utf-8") as file:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(_work(remaining, ask, answers, file, on_answer))
    except ExceptionGroup as failures:
        # The first is the reason of the others.
        raise failures.exceptions[0] from None
    except OSError as error:
        raise EvaluationError(f"{results} cannot be written ({error.strerror})") from error
    return answers


async def _work(
    remaining: Iterator[Question],
    ask: Ask,
    answers: dict[str, Answered],
    file: IO[str],
    on_answer: Callable[[], object],
) -> None:
    for question in remaining:
        answered = await ask(question)
        answers[question.key] = answered
        file.write(json.dumps(asdict(answered), ensure_ascii=False) + "\n")
        file.flush()
        on_answer()


def _read(results: Path) -> dict[str, Answered]:
    """The answers of earlier runs. A line that was cut short is asked for again."""
    try:
        lines = list(lines_of(results.read_bytes()))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise EvaluationError(f"{results} cannot be read: name another with --results") from error
    answers = {}
    for number, line in lines:
        try:
            answered = _ANSWERED.validate_json(line)
        except ValidationError as error:
            if number == lines[-1][0]:
                _cut_last_line(results)
                continue
            raise EvaluationError(
                f"{results} is no file of results (line {number}): name another with --results"
            ) from error
        answers[answered.key] = answered
    return answers


def _cut_last_line(results: Path) -> None:
    """What is appended must begin a line of its own."""
    content = results.read_bytes().rstrip(JSON_WHITESPACE)
    results.write_bytes(content[: content.rfind(b"\n") + 1])
