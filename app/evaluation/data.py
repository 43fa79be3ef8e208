"""The rows that an evaluation asks about, from a JSONL file; each is checked before any is asked.

A line that is no JSON object ends the evaluation: the file is something else. A row that cannot be
asked is left out. Both are named by their line.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.evaluation.measures import EvaluationError
from app.jsonl import NotJson, lines_of, value_of
from softserve.schema.templates import InputValue

_INPUT: TypeAdapter[Any] = TypeAdapter(InputValue)


@dataclass(frozen=True, slots=True)
class Row:
    """The object in a line of the file."""

    line: int
    fields: dict[str, Any]

    def inputs(self, variables: Iterable[str]) -> dict[str, Any]:
        return {name: self.fields[name] for name in variables}


def read_rows(file: Path, limit: int | None) -> list[Row]:
    """The first rows of a JSONL file, at most `limit`.

    Raises:
        EvaluationError: it cannot be read, or a line is no JSON object.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read ({error.strerror})") from error
    rows = [_row(file, number, line) for number, line in islice(lines_of(content), limit)]
    if not rows:
        raise EvaluationError(f"{file} has no rows: give one JSON object a line")
    return rows


def _row(file: Path, number: int, line: bytes) -> Row:
    try:
        fields = value_of(line)
    except NotJson as error:
        raise EvaluationError(f"{file}: line {number} is {error}: correct it") from error
    if not isinstance(fields, dict):
        raise EvaluationError(f"{file}: line {number} is no JSON object: give one a line")
    return Row(number, fields)


def sort_out(
    rows: Sequence[Row], variables: Iterable[str], reference: str
) -> tuple[list[Row], dict[int, str]]:
    """The rows with all that is wanted, and why the others, by their lines, cannot be asked.

    Raises:
        EvaluationError: none is left.
    """
    wanted = list(variables)
    faults = {row.line: _fault(row, wanted, reference) for row in rows}
    left_out = {line: fault for line, fault in faults.items() if fault is not None}
    kept = [row for row in rows if row.line not in left_out]
    if not kept:
        line, fault = next(iter(left_out.items()))
        raise EvaluationError(f"no row can be used: line {line} {fault}")
    return kept, left_out


def _fault(row: Row, variables: Iterable[str], reference: str) -> str | None:
    """Why a row cannot be asked, as the end of `line 3 ...`."""
    for name in (*variables, reference):
        if name not in row.fields:
            return (
                f"has no {name!r}, only {', '.join(row.fields)}: rename its fields, or name the "
                "one of the reference with --reference"
            )
    # A reference is only compared: it may hold what no prompt may.
    if not _is_text(row.fields[reference]):
        return f"has a {reference!r} that is no text: write it as one"
    for name in variables:
        try:
            _INPUT.validate_python(row.fields[name])
        except ValidationError as error:
            return f"has a {name!r} that cannot be asked: {error.errors()[0]['msg']}"
    return None


def _is_text(value: object) -> bool:
    """Half of a surrogate pair is none: it cannot be written anywhere."""
    return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)
