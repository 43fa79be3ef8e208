"""What the load tests with one server at a time share: the server, the model, what is shown."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.engine.model.find import find_model
from app.settings import Settings
from loadtest.clients import stream_all
from loadtest.measurements import Measurement
from loadtest.prompts import Tokenize, tokenizer_of
from loadtest.servers import HOST, SOFTSERVE, Server, running

Bodies = list[bytes]
Results = dict[str, list[Measurement]]
PIPE_WIDTH = 120


class Bench:
    """The model, a folder for adapters, and what is shown meanwhile."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        _, self.model = find_model(Settings())
        self.tokenize: Tokenize = tokenizer_of(self.model)
        self.folder = folder
        self.progress = progress

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False)

    @contextmanager
    def server(self, **settings: object) -> Iterator[Server]:
        """A server with these settings."""
        environment = {f"SOFTSERVE_{name.upper()}": str(each) for name, each in settings.items()}
        shown = ", ".join(f"{name} {each}" for name, each in settings.items())
        self.say(f"starting a server{shown and ' with '}{shown}")
        with running(SOFTSERVE, environment) as server:
            self.say(f"ready after {server.start_seconds:.0f} s")
            yield server

    def measure(self, name: str, server: Server, bodies: Bodies, num_clients: int) -> Measurement:
        """Stream every body, `num_clients` at a time."""
        task = self.progress.add_task(name, total=len(bodies))
        answers = stream_all(server, bodies, num_clients, lambda: self.progress.advance(task))
        self.progress.remove_task(task)
        return Measurement.of(name, answers)

    def measure_in_turns(
        self, server: Server, loads: dict[str, list[Bodies]], num_clients: int
    ) -> Results:
        """The bodies of each round of every load; the first round only warms up."""
        results: Results = {name: [] for name in loads}
        num_rounds = min(map(len, loads.values()))
        for index in range(num_rounds):
            for name in list(loads)[:: 1 if index % 2 else -1]:
                measurement = self.measure(name, server, loads[name][index], num_clients)
                if index:
                    results[name].append(measurement)
        return results


@contextmanager
def bench() -> Iterator[Bench]:
    progress = Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        # Refreshing is work for the cores that the engine runs on.
        refresh_per_second=1,
        transient=True,
    )
    # Terminated, it ends its server as it does when it is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder, progress:
        yield Bench(Path(folder), progress)


def client_of(server: Server) -> httpx.Client:
    return httpx.Client(base_url=f"http://{HOST}:{server.port}", trust_env=False, timeout=300.0)


def print_table(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(table)
