"""How long does the engine go on for a client that has left? Goal: under a second.

Run as `.venv/bin/python -m loadtest.disconnect`. Every request would run for minutes; a client
leaves it in the middle, and the engine's own gauges are read until it runs nothing any more.
"""

import http.client
import json
import statistics
import time
from typing import Annotated

import typer

from loadtest.servers import HOST, SOFTSERVE, running

ENDLESS = {"prompt": "Once upon a time", "max_new_tokens": 8000, "ignore_eos": True}
GAUGES = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
GIVE_UP_SECONDS = 60.0


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each kind.")] = 10,
) -> None:
    """Measure the time from a disconnection to an idle engine, streaming and not."""
    with running(SOFTSERVE, {}) as server:
        for stream in (True, False):
            seconds = [freed_after(server.port, stream) for _ in range(rounds)]
            kind = "streaming" if stream else "not streaming"
            typer.echo(
                f"{kind}: freed after {statistics.median(seconds) * 1000:.0f} ms (median), "
                f"{max(seconds) * 1000:.0f} ms (slowest of {rounds})"
            )


def freed_after(port: int, stream: bool) -> float:
    """Seconds from closing the connection to the engine's running and waiting nothing."""
    connection = http.client.HTTPConnection(HOST, port)
    body = json.dumps(ENDLESS | {"stream": stream})
    connection.request("POST", "/generate", body, {"content-type": "application/json"})
    wait_for(port, num_requests=1)
    time.sleep(0.5)
    left = time.perf_counter()
    connection.close()
    wait_for(port, num_requests=0)
    return time.perf_counter() - left


def wait_for(port: int, num_requests: int) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while num_requests_in_engine(port) != num_requests:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the engine never had {num_requests} requests")
        time.sleep(0.005)


def num_requests_in_engine(port: int) -> float:
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(GAUGES))


if __name__ == "__main__":
    typer.run(main)
