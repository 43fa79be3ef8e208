"""`softserve top`: what a running server does, now."""

import json
import time
from collections import deque
from typing import Annotated

import typer

from app.cli.connection import DEFAULT_URL, Key, Url, connected
from app.cli.console import stdout
from app.cli.readings import Interval, Reading
from app.cli.top_view import View, figures, frame
from app.cli.watching import watch
from softserve.client import Client, ClientError

cli = typer.Typer(add_completion=False)

# Rates and quantiles of a single second jump about.
WINDOW = 5
HISTORY = 12
# Without a terminal.
WIDTH = 100


@cli.command()
def top(
    url: Url = DEFAULT_URL,
    key: Key = None,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two readings.", show_default=True)
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Show one frame, of one interval, and end.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures of one interval as JSON, and end.")
    ] = False,
) -> None:
    console = stdout(WIDTH)
    with connected(url, key) as client:
        watched = Watched(client, url)
        if not (once or as_json) and console.is_terminal:
            watch(lambda: frame(watched.next_view(), console.width), console, interval)
            return
        watched.read()
        time.sleep(interval)
        watched.read()
        view = watched.view()
    if as_json:
        typer.echo(json.dumps(figures(view), indent=2))
    else:
        console.print(frame(view, console.width))


class Watched:
    """A server that is asked again and again."""

    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        self._url = url
        self._model: str | None = None
        self._readings: deque[Reading] = deque(maxlen=WINDOW + 1)
        self._tokens_out: deque[float] = deque(maxlen=HISTORY)

    def read(self) -> None:
        """Raises `ClientError`."""
        self._readings.append(Reading.of(self._client.metrics(), time.monotonic()))
        if self._model is None and self._readings[-1].total("softserve_state", state="open"):
            self._model = self._client.info().model
        if len(self._readings) > 1:
            last = Interval(self._readings[-2], self._readings[-1])
            self._tokens_out.append(last.rate("softserve_completion_tokens_total"))

    def next_view(self) -> View:
        """The view after one more reading, or why there is none."""
        try:
            self.read()
        except ClientError as error:
            self._forget()
            return self.view(f"{error}; trying again")
        return self.view()

    def _forget(self) -> None:
        """It does not answer: what comes next is another life of it."""
        self._model = None
        self._readings.clear()
        self._tokens_out.clear()

    def view(self, trouble: str | None = None) -> View:
        known = len(self._readings) > 1
        interval = Interval(self._readings[0], self._readings[-1]) if known else None
        return View(self._url, self._model, interval, self._tokens_out, trouble)
