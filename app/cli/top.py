"""`softserve top`: what a running server does, now."""

import time
from collections import deque
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from app.cli.connection import DEFAULT_URL, Key, Url, connected
from app.cli.console import stdout
from app.cli.readings import Interval, Reading
from app.cli.top_view import View, frame
from softserve.client import Call, Client, ClientError
from softserve.schema.server import ModelInfo

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
) -> None:
    console = stdout(WIDTH)
    with connected(url, key) as client:
        watched = Watched(client, url)
        if once or not console.is_terminal:
            watched.read()
            time.sleep(interval)
            watched.read()
            console.print(frame(watched.view(), console.width))
            return
        try:
            _show(watched, console, interval)
        except KeyboardInterrupt:
            # That is how it ends.
            return


def _show(watched: "Watched", console: Console, interval: float) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            trouble = None
            try:
                watched.read()
            except ClientError as error:
                watched.forget()
                trouble = f"{error}; trying again"
            live.update(frame(watched.view(trouble), console.width), refresh=True)
            time.sleep(interval)


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
        self._readings.append(Reading.of(self._client.text("/metrics"), time.monotonic()))
        if self._model is None and self._readings[-1].total("softserve_state", state="open"):
            self._model = self._client.send(Call("GET", "/info", ModelInfo)).model
        if len(self._readings) > 1:
            last = Interval(self._readings[-2], self._readings[-1])
            self._tokens_out.append(last.rate("softserve_completion_tokens_total"))

    def forget(self) -> None:
        """It does not answer: what comes next is another life of it."""
        self._model = None
        self._readings.clear()
        self._tokens_out.clear()

    def view(self, trouble: str | None = None) -> View:
        known = len(self._readings) > 1
        interval = Interval(self._readings[0], self._readings[-1]) if known else None
        return View(self._url, self._model, interval, self._tokens_out, trouble)
