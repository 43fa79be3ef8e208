"""`softserve inspect`. Its options are made from the body of `POST /inspect`."""

from typing import Any

import typer

from app.cli.connection import DEFAULT_URL, Key, Url, connected
from app.cli.inspection_tables import print_distribution
from app.cli.options import with_options
from softserve.client import Call
from softserve.schema.inspection import InspectAnswer, InspectBody

cli = typer.Typer(add_completion=False)


@cli.command()
@with_options(InspectBody.model_fields)
def inspect(url: Url = DEFAULT_URL, key: Key = None, **given: Any) -> None:
    # Not checked here: what a server takes, that server knows.
    body = InspectBody.model_construct(**given).model_dump(exclude_none=True)
    with connected(url, key) as client:
        answer = client.send(Call("POST", "/inspect", InspectAnswer, body))
    print_distribution(answer)
