"""A view of a server that is drawn again and again, on the whole terminal."""

import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from app.cli.console import fail
from softserve.client import ClientError

SECONDS = 2.0

Watch = Annotated[
    bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C ends it.")
]


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
