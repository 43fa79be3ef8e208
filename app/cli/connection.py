"""Which server the commands talk to, and what they ask of adapters and of templates alike."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Generic

import typer

from app.cli.console import fail
from softserve.client import PATIENT, Answer, Call, Client, ClientError, Nothing
from softserve.schema.fields import name_refusal
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


@contextmanager
def connected(url: str, key: str | None = None) -> Iterator[Client]:
    """A client of the server. A `ClientError` ends the command with its sentence."""
    try:
        with Client(url, key) as client:
            yield client
    except ClientError as error:
        raise fail(str(error)) from None


@dataclass(frozen=True, slots=True)
class Family(Generic[Answer]):
    """Adapters, or templates: what has a name and versions is asked for alike."""

    what: str
    path: str
    answer_type: type[Answer]

    def path_of(self, name: str) -> str:
        if refusal := name_refusal(self.what, name):
            raise fail(refusal)
        return f"{self.path}/{name}"

    def show(self, name: str) -> Call[Answer]:
        return Call("GET", self.path_of(name), self.answer_type)

    def rollback(self, name: str, version: str | None) -> Call[Answer]:
        body = {} if version is None else {"version": version}
        return Call("POST", f"{self.path_of(name)}/rollback", self.answer_type, body, PATIENT)

    def remove(self, name: str) -> Call[Nothing]:
        return Call("DELETE", self.path_of(name), Nothing, timeout_seconds=PATIENT)
