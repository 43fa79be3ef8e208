"""`softserve inspect`. Its options are made from the body of `POST /inspect`."""

from typing import Annotated, Any

import typer

from app.cli.connection import DEFAULT_URL, Json, Key, Url, connected, print_json
from app.cli.inspection_tables import print_distribution
from app.cli.options import with_options
from softserve.schema.inspection import InspectBody

FIELDS = {name: field for name, field in InspectBody.model_fields.items() if name != "prompt"}

cli = typer.Typer(add_completion=False)


@cli.command()
@with_options(FIELDS)
def inspect(
    prompt: Annotated[
        str | None, typer.Argument(help=InspectBody.model_fields["prompt"].description)
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    **given: Any,
) -> None:
    # Not checked here: what a server takes, that server knows.
    with connected(url, key) as client:
        answer = client.inspect(prompt, **given)
    if as_json:
        print_json(answer)
    else:
        print_distribution(answer)
