"""What the commands share: which server they talk to, and how a failure reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from softserve.client import ClientError

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(help="The running server.", envvar="SOFTSERVE_URL")]
AdminKey = Annotated[
    str | None, typer.Option(help="The server's admin key.", envvar="SOFTSERVE_ADMIN_KEY")
]


def fail(sentence: str) -> typer.Exit:
    """Tell the sentence; raise what this returns to end the command."""
    typer.echo(f"softserve: {sentence}", err=True)
    return typer.Exit(1)


@contextmanager
def telling_failures() -> Iterator[None]:
    """End the command with the sentence of a `ClientError`."""
    try:
        yield
    except ClientError as error:
        raise fail(str(error)) from None
