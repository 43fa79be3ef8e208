"""Does a server's memory grow? Many requests, and an adapter that is replaced again and again.

Run as `.venv/bin/python -m loadtest.soak`. Resident memory is read after a warm-up, in which the KV
cache is written and the allocators of three processes find their size, and at the end. Goal: no
process grows by 5 %.
"""

import asyncio
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from app.engine.model.find import find_model
from app.settings import Settings
from loadtest.random_adapters import make_loras
from loadtest.servers import HOST, SOFTSERVE, Server, running
from softserve.schema.adapters import ADAPTER_FILES

NUM_CLIENTS = 32
# Memory of the KV cache counts from when it is first written: the warm-up fills a small one.
KV_CACHE_GIB = 0.1
WARM_UP_REQUESTS = 2_000
LONG_PROMPT_TOKENS = 2_000
# More than the server keeps: what comes again is new to it.
NUM_LORAS = 16
RANK = 4
# Of vLLM's own description of its KV cache.
CACHE_SIZE = re.compile(r'\b(num_gpu_blocks|block_size)="(\d+)"')
ADAPTER = "replaced"
TIMEOUT_SECONDS = 300.0


def main(
    num_requests: Annotated[int, typer.Option(min=1, help="Requests after the warm-up.")] = 10_000,
    num_swaps: Annotated[int, typer.Option(min=1, help="Replaced adapters among them.")] = 300,
) -> None:
    """Measure by how much each process grows."""
    environment = {"SOFTSERVE_KV_CACHE_GIB": str(KV_CACHE_GIB)}
    with tempfile.TemporaryDirectory() as folder, running(SOFTSERVE, environment) as server:
        _, model = find_model(Settings())
        loras = make_loras(model, Path(folder), NUM_LORAS, RANK)
        before, after = soak(server, loras, num_requests, num_swaps)
    for process, mib in after.items():
        grown = mib / before[process] - 1
        typer.echo(f"{process}: {before[process]:.1f} -> {mib:.1f} MiB ({grown:+.2%})")


def soak(
    server: Server, loras: Sequence[Path], num_requests: int, num_swaps: int
) -> tuple[dict[str, float], dict[str, float]]:
    """MiB in memory of each process, after a warm-up and after the work."""
    requests_per_swap = num_requests // num_swaps
    folders = cycle(loras)
    asyncio.run(_fill_kv_cache(server))
    asyncio.run(_work(server, folders, range(WARM_UP_REQUESTS), requests_per_swap))
    before = server.resident_mib_by_process()
    numbers = range(WARM_UP_REQUESTS, WARM_UP_REQUESTS + num_requests)
    asyncio.run(_work(server, folders, numbers, requests_per_swap))
    return before, server.resident_mib_by_process()


async def _fill_kv_cache(server: Server) -> None:
    """Have every block of it written once."""
    async with _client(server) as client:
        metrics = (await client.get("/metrics")).text
        size = {name: int(value) for name, value in CACHE_SIZE.findall(metrics)}
        num_tokens = size["num_gpu_blocks"] * size["block_size"]
        for number in range(ceil(num_tokens / LONG_PROMPT_TOKENS)):
            prompt = f"{number}" + " a" * LONG_PROMPT_TOKENS
            response = await client.post("/generate", json={"prompt": prompt, "max_new_tokens": 1})
            response.raise_for_status()


def _client(server: Server) -> httpx.AsyncClient:
    url = f"http://{HOST}:{server.port}"
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False)


async def _work(
    server: Server, folders: Iterator[Path], numbers: Iterable[int], requests_per_swap: int
) -> None:
    """A request for each number, of many clients at once."""
    async with _client(server) as client:
        left = iter(numbers)

        async def ask_on() -> None:
            for number in left:
                if number % requests_per_swap == 0:
                    await _swap(client, next(folders))
                await _ask(client, number)

        await _swap(client, next(folders))
        async with asyncio.TaskGroup() as clients:
            for _ in range(NUM_CLIENTS):
                clients.create_task(ask_on())


async def _ask(client: httpx.AsyncClient, number: int) -> None:
    """A request like no other: some stream, most with the adapter."""
    body: dict[str, Any] = {"prompt": f"Tell me of {number}", "max_new_tokens": 2}
    body |= {"stream": number % 2 == 0}
    if number % 3:
        body |= {"adapter": ADAPTER}
    response = await client.post("/generate", json=body)
    response.raise_for_status()


async def _swap(client: httpx.AsyncClient, folder: Path) -> None:
    files = [("file", (name, (folder / name).read_bytes())) for name in ADAPTER_FILES]
    response = await client.put(f"/adapters/{ADAPTER}", files=files)
    response.raise_for_status()


if __name__ == "__main__":
    typer.run(main)
