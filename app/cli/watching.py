"""What a server has, shown once, as JSON, or again and again on the whole terminal."""

import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from app.cli.connection import print_json
from app.cli.console import fail
from softserve.client import ClientError

Answer = TypeVar("Answer", bound=BaseModel)

SECONDS = 2.0

Watch = Annotated[
    bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C ends it.")
]


def show_list(
    ask: Callable[[], Answer],
    view_of: Callable[[Answer], RenderableType],
    console: Console,
    *,
    watched: bool,
    as_json: bool,
) -> None:
    """What is answered, as JSON or as its view, and that once or until Ctrl-C."""

    def view() -> RenderableType:
        return view_of(ask())

    if as_json:
        print_json(ask())
    elif watched:
        watch(view, console)
    else:
        console.print(view())


def watch(view: Callable[[], RenderableType], console: Console, seconds: float = SECONDS) -> None:
    """Draw the view, again and again, until Ctrl-C. A server that is away may come back."""
    if not console.is_terminal:
        raise fail("--watch draws on a terminal, and this is none: leave it out")
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_drawn(view), refresh=True)
                time.sleep(seconds)
    except KeyboardInterrupt:
        # That is how it ends.
        return


def _drawn(view: Callable[[], RenderableType]) -> RenderableType:
    try:
        return view()
    except ClientError as error:
        return Text(f"{error}; trying again", style="red")
