"""A server that is asked for more than it can: who waits for whom.

    .venv/bin/python -m loadtest.overload --help

The clients run on the machine of the server and take some of its time: what they see is not better
than what others would.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from app.access.key_file import KeyFile
from loadtest.clients import Connection, StreamedAnswer, http_request, streaming_body
from loadtest.disconnect import num_requests_in_engine
from loadtest.harness import Bench, bench, print_table
from loadtest.measurements import Latency
from loadtest.prompts import make_prompts
from loadtest.servers import HOST
from softserve.schema.keys import CreateKey

NUM_PROMPT_TOKENS = 64
NUM_PROMPTS = 256
# Of the one whose short requests come beside others' long ones.
NUM_SHORT_TOKENS = 16
# So small that what a client does not read stays with the server.
RECEIVE_BUFFER_BYTES = 4096

Seconds = Annotated[float, typer.Option(min=1, help="How long the overload lasts.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens in each completion.")]

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@dataclass
class Crowd:
    """Clients of one server, and all answers that they have got."""

    port: int
    requests: Iterator[bytes]
    answers: list[StreamedAnswer] = field(default_factory=list)
    _idle: list[Connection] = field(default_factory=list)

    async def ask(self) -> StreamedAnswer:
        """Send the next request, on a connection that is free or a new one."""
        async with self._connection() as connection:
            try:
                return await connection.send(next(self.requests))
            finally:
                # What came counts, also of one that the end of the measurement cuts off.
                self.answers.append(connection.answer)

    async def ask_for_ever(self, pause_seconds: float = 0.0) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(pause_seconds)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        # After a refusal that came before the body was read, it is closed.
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, HOST, self.port)
        return connection

    @property
    def completed(self) -> list[StreamedAnswer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def refused(self) -> list[StreamedAnswer]:
        return [answer for answer in self.answers if answer.status >= 400]

    def events_between(self, begin: float, end: float) -> int:
        """The pieces of text, of a token nearly always, that came meanwhile."""
        return sum(begin <= at < end for answer in self.answers for at in answer.text_events_at)


@cli.command()
def fairness(
    clients: Annotated[int, typer.Option(min=1, help="Completions of the busy key.")] = 256,
    requests: Annotated[int, typer.Option(min=1, help="Short requests, one by one.")] = 20,
    new_tokens: NewTokens = 64,
) -> None:
    """One short request after the other: alone, and beside a client that is always busy."""
    with bench() as this:
        keys = make_keys(this, busy=1, short=1)
        settings = {"keys_file": this.folder / "keys", "max_sequences_in_flight": 2 * clients}
        with this.server(**settings) as server, asyncio.Runner() as runner:

            async def measure(num_busy: int, key: str) -> Crowd:
                busy = Crowd(server.port, cycle(requests_of(this, new_tokens, keys["busy"])))
                short = Crowd(
                    server.port, cycle(requests_of(this, NUM_SHORT_TOKENS, key, NUM_SHORT_TOKENS))
                )
                async with background(busy.ask_for_ever() for _ in range(num_busy)):
                    # The busy client has what it can have by then.
                    await asyncio.sleep(10 if num_busy else 0)
                    for _ in range(requests):
                        await short.ask()
                short.close()
                return short

            crowds = {
                "alone": runner.run(measure(0, keys["short"])),
                "beside another key": runner.run(measure(clients, keys["short"])),
                "beside its own key": runner.run(measure(clients, keys["busy"])),
            }
    table = table_of("a short request", "refused", "TTFT p50", "p99 ms", "whole p50", "p99 ms")
    for name, crowd in crowds.items():
        ttft = Latency.of([answer.ttft_seconds for answer in crowd.completed])
        whole = Latency.of([answer.seconds for answer in crowd.completed])
        milliseconds = (ttft.p50_ms, ttft.p99_ms, whole.p50_ms, whole.p99_ms)
        table.add_row(name, str(len(crowd.refused)), *(f"{each:,.0f}" for each in milliseconds))
    print_table(table)


@cli.command()
def weights(
    clients: Annotated[int, typer.Option(min=1, help="Completions of each key.")] = 64,
    running: Annotated[int, typer.Option(min=1, help="Places at the engine.")] = 32,
    new_tokens: NewTokens = 16,
    seconds: Seconds = 60,
) -> None:
    """Two keys that are always busy, one with three times the weight: who gets how many tokens."""
    with bench() as this:
        keys = make_keys(this, one=1, three=3)
        settings = {
            "keys_file": this.folder / "keys",
            "max_sequences_in_flight": 4 * clients,
            "max_running_sequences": running,
        }
        with this.server(**settings) as server, asyncio.Runner() as runner:
            crowds = {
                name: Crowd(server.port, cycle(requests_of(this, new_tokens, key)))
                for name, key in keys.items()
            }
            begin = time.perf_counter()
            runner.run(
                for_seconds(
                    seconds,
                    [crowd.ask_for_ever() for crowd in crowds.values() for _ in range(clients)],
                )
            )
    # Not the beginning: whoever comes first to an empty server gets all of it.
    tokens = {
        name: crowd.events_between(begin + seconds / 4, begin + seconds)
        for name, crowd in crowds.items()
    }
    typer.echo(
        f"weight 3 : weight 1 = {tokens['three']:,} : {tokens['one']:,} tokens "
        f"= {tokens['three'] / tokens['one']:.2f}"
    )


@cli.command()
def running(
    places: Annotated[str, typer.Option(help="Numbers of completions at a time.")] = "16,32,64,128",
    clients: Annotated[int, typer.Option(min=1, help="Clients that stream at once.")] = 128,
    new_tokens: NewTokens = 64,
) -> None:
    """How many completions the engine should work on at a time."""
    table = table_of("at a time", "tokens/s", "TTFT p50", "p99 ms", "ITL p50", "p99 ms")
    with bench() as this:
        prompts = make_prompts(2 * clients, NUM_PROMPT_TOKENS, this.tokenize, seed=0)
        bodies = [streaming_body(prompt, new_tokens) for prompt in prompts]
        for number in map(int, places.split(",")):
            with this.server(max_running_sequences=number) as server:
                this.measure("warming up", server, bodies[: clients // 4], clients // 4)
                measured = this.measure(f"{number} at a time", server, bodies, clients)
            ttft, itl = measured.ttft, measured.itl
            milliseconds = (ttft.p50_ms, ttft.p99_ms, itl.p50_ms, itl.p99_ms)
            rate = f"{measured.tokens_per_second:.0f}"
            table.add_row(str(number), rate, *(f"{each:,.0f}" for each in milliseconds))
    print_table(table)


@cli.command()
def slow_readers(
    clients: Annotated[int, typer.Option(min=1, help="Who reads a byte a second.")] = 8,
    n: Annotated[int, typer.Option(min=1, help="Completions of each.")] = 8,
    new_tokens: NewTokens = 1000,
    seconds: Seconds = 120,
) -> None:
    """Streams that are read a byte a second hold all places: is anybody else refused?

    While the engine works for them, yes; not when it has made what may be unread.
    """
    table = table_of(
        "--slow-reader", "engine idle after", "refused", "of them then", "answered then"
    )
    with bench() as this:
        for what in ("pause", "abort"):
            settings = {"slow_reader": what, "max_sequences_in_flight": clients * n}
            with this.server(**settings) as server, asyncio.Runner() as runner:
                crowd = Crowd(server.port, cycle(requests_of(this, NUM_SHORT_TOKENS)))
                beside = _beside_slow_readers(this, crowd, clients, n, new_tokens, seconds)
                begin = time.perf_counter()
                idle_at = runner.run(beside)
            refused = [answer.sent_at > idle_at for answer in crowd.refused]
            answered = [answer.sent_at > idle_at for answer in crowd.completed]
            counts = (len(refused), sum(refused), sum(answered))
            table.add_row(what, f"{idle_at - begin:.0f} s", *map(str, counts))
    print_table(table)


async def _beside_slow_readers(
    this: Bench, crowd: Crowd, clients: int, n: int, new_tokens: int, seconds: float
) -> float:
    """When the engine works for the slow ones no more, while another asks for a little."""
    prompts = make_prompts(clients, NUM_PROMPT_TOKENS, this.tokenize, seed=1)
    # With log probabilities, soon more is made than the sockets hold.
    fields = {"n": n, "temperature": 1.0, "logprobs": 20}
    bodies = [streaming_body(prompt, new_tokens, **fields) for prompt in prompts]
    async with background(read_slowly(crowd.port, body) for body in bodies):
        # They come first.
        await asyncio.sleep(5)
        idle = asyncio.create_task(_idle_at(crowd.port))
        await for_seconds(seconds, [crowd.ask_for_ever(pause_seconds=0.5)])
        if not idle.done():
            raise TimeoutError(
                "the engine still works for the slow readers: give it more --seconds"
            )
        return idle.result()


async def _idle_at(port: int) -> float:
    """When the engine first had no more to do than the request of the one beside."""
    while await asyncio.to_thread(num_requests_in_engine, port) > 1:  # noqa: ASYNC110
        await asyncio.sleep(1)
    return time.perf_counter()


async def read_slowly(port: int, body: bytes) -> None:
    """A byte a second, for ever."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        client.setblocking(False)
        await loop.sock_connect(client, (HOST, port))
        await loop.sock_sendall(client, http_request(body))
        second = 0.0
        while await loop.sock_recv(client, 1):
            await asyncio.sleep(second)
            second = 1.0


@asynccontextmanager
async def background(loads: Iterator[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """What goes on meanwhile; a failure of it is one of the whole."""
    tasks = [asyncio.create_task(load) for load in loads]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [each for each in ended if isinstance(each, Exception)]
    if failures:
        raise failures[0]


async def for_seconds(seconds: float, loads: Sequence[Coroutine[Any, Any, None]]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for load in loads:
                group.create_task(load)


def requests_of(
    this: Bench,
    num_new_tokens: int,
    key: str | None = None,
    num_prompt_tokens: int = NUM_PROMPT_TOKENS,
) -> list[bytes]:
    """Greedy streams of exactly so many tokens, each with a prompt of its own."""
    prompts = make_prompts(NUM_PROMPTS, num_prompt_tokens, this.tokenize, seed=0)
    bodies = (streaming_body(prompt, num_new_tokens) for prompt in prompts)
    return [http_request(body, key) for body in bodies]


def make_keys(this: Bench, **weight_of: float) -> dict[str, str]:
    """The secrets of new keys, by name."""
    file = KeyFile(this.folder / "keys")
    file.open(may_be_missing=True)
    return {
        name: file.create(CreateKey(name=name, weight=weight))[1]
        for name, weight in weight_of.items()
    }


def table_of(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    cli()
