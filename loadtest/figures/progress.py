"""One line while the load runs, of the last seconds."""

import time
from typing import Any

import gevent
from locust.env import Environment
from rich.console import Console
from rich.live import Live

from loadtest.figures.recorder import Figures, Recorder

SHOWN_SECONDS = 10
# A file gets a line of its own each time.
PLAIN_INTERVAL_SECONDS = 10.0


def show_progress(environment: Environment, recorder: Recorder) -> None:
    """On stderr, in a headless run."""
    if environment.web_ui is not None:
        return
    console = Console(stderr=True, highlight=False)

    def start(**_: Any) -> None:
        gevent.spawn(_redraw if console.is_terminal else _print, console, environment, recorder)

    environment.events.test_start.add_listener(start)


def _redraw(console: Console, environment: Environment, recorder: Recorder) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_line(environment, recorder), refresh=True)
            gevent.sleep(1.0)


def _print(console: Console, environment: Environment, recorder: Recorder) -> None:
    while True:
        gevent.sleep(PLAIN_INTERVAL_SECONDS)
        console.print(_line(environment, recorder), soft_wrap=True)


def _line(environment: Environment, recorder: Recorder) -> str:
    now = time.time()
    # The second that has begun is not whole.
    last = range(int(now) - SHOWN_SECONDS, int(now))
    recent = Figures.sum(recorder.by_second[each] for each in last if each in recorder.by_second)
    counts, total = recent.counts, recorder.total().counts
    parts = [
        f"{now - environment.stats.start_time:.0f} s",
        f"{environment.runner.user_count if environment.runner else 0} users",
        f"{counts['completed'] / SHOWN_SECONDS:.1f} requests/s",
        f"{counts['tokens_that_came'] / SHOWN_SECONDS:.0f} tokens/s",
        f"TTFT {_ms(recent, 'ttft')} ms",
        f"ITL {_ms(recent, 'itl')} ms (p50, p99)",
        f"refused {total['429'] + total['503']}",
        f"failed {total['failed']}",
    ]
    return "  ".join(parts)


def _ms(figures: Figures, name: str) -> str:
    times = figures.times[name]
    return ", ".join(f"{(times.percentile(percent) or 0) * 1000:.0f}" for percent in (50, 99))
