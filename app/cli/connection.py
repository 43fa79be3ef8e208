"""Which server the commands talk to, and what they have alike."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic import BaseModel

from app.cli.console import fail
from softserve.client import Client, ClientError
from softserve.schema.versions import RollbackBody

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(help="The running server.", envvar="SOFTSERVE_URL")]


def _from_stdin(key: str | None) -> str | None:
    return sys.stdin.readline().strip() if key == "-" else key


Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        "--admin-key",
        help="A key of the server; - reads it from standard input. A process's arguments can be "
        "seen by others: better is the environment.",
        envvar=["SOFTSERVE_API_KEY", "SOFTSERVE_ADMIN_KEY"],
        # It would show the value.
        show_default=False,
        callback=_from_stdin,
    ),
]
Version = Annotated[
    str | None,
    typer.Option(help=RollbackBody.model_fields["version"].description),
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON, for programs.")]


@contextmanager
def connected(url: str, key: str | None = None) -> Iterator[Client]:
    """A client of the server. A `ClientError` ends the command with its sentence.

    Nothing is tried again: who waits at a terminal is told at once.
    """
    try:
        with Client(url, key, timeout_seconds=None, retry_seconds=0) as client:
            yield client
    except ClientError as error:
        raise fail(str(error)) from None


def print_json(answer: BaseModel) -> None:
    """As the server sent it."""
    typer.echo(answer.model_dump_json(indent=2, exclude_unset=True))
