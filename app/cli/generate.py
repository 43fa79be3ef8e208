"""`softserve generate`. Its options are made from the body of `POST /generate`.

The text goes to standard output, alone; what it took goes to standard error.
"""

import sys
from typing import Annotated, Any

import typer

from app.cli.completions import print_event, print_events, print_summary, print_texts
from app.cli.connection import DEFAULT_URL, Json, Key, Url, connected, print_json
from app.cli.console import fail
from app.cli.options import with_options
from softserve.client import Client
from softserve.schema.generation import GenerateBody
from softserve.schema.prompts import PROMPT_FIELDS

OWN = ("prompt", "stream")
CONTROLS = {name: field for name, field in GenerateBody.model_fields.items() if name not in OWN}
OTHER_PROMPTS = set(PROMPT_FIELDS) - {"prompt"}

cli = typer.Typer(add_completion=False)


@cli.command()
@with_options(CONTROLS)
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to complete; without it, or as -, standard input."),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Show it as it comes, or when it is whole."),
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    **given: Any,
) -> None:
    several = given.get("n", 1) > 1
    if stream and several and not as_json:
        raise fail("--stream would mix the completions of --n: leave it out, or add --json")
    if prompt is not None or not OTHER_PROMPTS & given.keys():
        given["prompt"] = sys.stdin.read().removesuffix("\n") if prompt in (None, "-") else prompt
    with connected(url, key) as client:
        if stream or (stream is None and not several and not as_json):
            _stream(client, given, as_json=as_json)
        else:
            _whole(client, given, as_json=as_json)


def _stream(client: Client, given: dict[str, Any], *, as_json: bool) -> None:
    with client.stream(**given) as events:
        if as_json:
            for event in events:
                print_event(event)
            return
        (end,) = print_events(events)
    print_summary(end)


def _whole(client: Client, given: dict[str, Any], *, as_json: bool) -> None:
    answer = client.generate(**given)
    if as_json:
        print_json(answer)
        return
    print_texts(answer)
    print_summary(answer)
