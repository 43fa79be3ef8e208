"""Keys share one engine: by weight, within their quotas, and none holds up another."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.access.key_file import KeyFile
from softserve.schema.keys import CreateKey
from tests.server.process import ServerProcess, running, until
from tests.server.requests import generate, metric, text_of
from tests.server.tiny_models import SMALL

KEYS = [
    CreateKey(name="busy"),
    CreateKey(name="single"),
    CreateKey(name="light"),
    CreateKey(name="heavy", weight=3.0),
    CreateKey(name="urgent", max_priority=5),
    CreateKey(name="few", max_requests_in_flight=2),
    CreateKey(name="short", completion_tokens_per_minute=100),
    CreateKey(name="bound", adapters=["none-*"]),
    CreateKey(name="watch", roles=["operator"]),
]
QUESTION: dict[str, Any] = {"prompt": "Once upon a time", "ignore_eos": True}
# On the model's two cores, nothing takes as long.
LONG = 1000
# As long as the context window allows.
LONGEST = 4000
PLENTY_SECONDS = 60.0


@dataclass(frozen=True)
class Shared:
    """A server, and the secrets of its keys by their names."""

    server: ServerProcess
    secrets: dict[str, str]

    def headers(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secrets[key]}"}

    def client(self, key: str) -> httpx.Client:
        client = self.server.client()
        client.headers.update(self.headers(key))
        return client

    def async_client(self) -> httpx.AsyncClient:
        return self.server.async_client()

    async def ask(self, client: httpx.AsyncClient, key: str, **body: Any) -> httpx.Response:
        return await client.post("/generate", json=QUESTION | body, headers=self.headers(key))


@pytest.fixture(scope="module")
def shared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    secrets = {asked.name: file.create(asked)[1] for asked in KEYS}
    flags = (
        *("--model", str(tiny_model)),
        *("--keys-file", str(file.path)),
        *("--max-running-sequences", "8"),
        *("--max-sequences-in-flight", "400"),
        *("--engine-arg", "scheduling-policy=priority"),
    )
    with running(*SMALL, *flags) as server:
        server.wait_until_ready()
        yield Shared(server, secrets)


async def test_a_short_request_does_not_wait_for_another_keys_many(shared: Shared) -> None:
    async with shared.async_client() as client:
        many = [
            asyncio.create_task(shared.ask(client, "busy", max_new_tokens=LONG)) for _ in range(256)
        ]
        with shared.client("watch") as watch:
            await until(lambda: metric(watch, "softserve_sequences_waiting") >= 128, PLENTY_SECONDS)
            single = await shared.ask(client, "single", max_new_tokens=2)
            num_waiting = metric(watch, "softserve_sequences_waiting")
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)

    assert single.status_code == 200
    assert num_waiting >= 64, "it came after a few of the others at most, not after them all"


async def test_busy_keys_share_tokens_by_weight(shared: Shared) -> None:
    order = await order_of_answers(shared, [("light", 0), ("heavy", 0)] * 60)

    counts = Counter(key for key, _ in order[:60])
    assert 2.0 < counts["heavy"] / counts["light"] < 4.0


async def test_the_more_important_comes_first_in_its_keys_line(shared: Shared) -> None:
    order = await order_of_answers(shared, [("urgent", 0), ("urgent", 5)] * 24)

    # Some run side by side.
    assert sum(priority for _, priority in order[:24]) >= 5 * 20


async def order_of_answers(shared: Shared, asked: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Who is answered after whom, of keys and priorities that all wait before one begins."""
    order: list[tuple[str, int]] = []

    async def ask(client: httpx.AsyncClient, key: str, priority: int) -> None:
        answer = await shared.ask(client, key, max_new_tokens=20, priority=priority)
        assert answer.status_code == 200
        order.append((key, priority))

    async with shared.async_client() as client:

        def hold(key: str) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(shared.ask(client, key, max_new_tokens=LONGEST))

        with shared.client("watch") as watch:
            holders = [hold("busy") for _ in range(7)]
            await until(lambda: metric(watch, "softserve_sequences_running") == 7, PLENTY_SECONDS)
            # No key gets the last place: it is for another, which has to come after the first.
            holders.append(hold("single"))
            await until(lambda: metric(watch, "softserve_sequences_running") == 8, PLENTY_SECONDS)
            tasks = [asyncio.create_task(ask(client, *each)) for each in asked]
            await until(
                lambda: metric(watch, "softserve_sequences_waiting") == len(asked), PLENTY_SECONDS
            )
        assert not any(holder.done() for holder in holders)
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*tasks)
        await asyncio.gather(*holders, return_exceptions=True)
    return order


def test_a_priority_that_the_key_may_not_ask_for(shared: Shared) -> None:
    with shared.client("single") as client:
        answer = client.post("/generate", json=QUESTION | {"priority": 1})
    assert answer.status_code == 403
    assert answer.json()["error"]["param"] == "priority"


async def test_requests_over_a_keys_own_quota_get_429(shared: Shared) -> None:
    async with shared.async_client() as client:
        answers = await asyncio.gather(
            *(shared.ask(client, "few", max_new_tokens=LONG) for _ in range(6))
        )
        assert (await shared.ask(client, "few", max_new_tokens=1)).status_code == 200
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses == {200: 2, 429: 4}
    assert all(int(answer.headers["retry-after"]) for answer in answers if answer.is_error)


async def test_a_minutes_tokens(shared: Shared) -> None:
    async with shared.async_client() as client:
        first = await shared.ask(client, "short", max_new_tokens=150)
        second = await shared.ask(client, "short", max_new_tokens=1)
        other = await shared.ask(client, "single", max_new_tokens=1)
    assert (first.status_code, second.status_code, other.status_code) == (200, 429, 200)
    assert second.json()["error"]["type"] == "quota_exceeded"
    # 50 tokens over, at 100 a minute, less the time that has passed.
    assert 5 <= int(second.headers["retry-after"]) <= 32


def test_what_a_key_may_not_do(shared: Shared) -> None:
    with shared.client("bound") as client:
        assert client.post("/generate", json=QUESTION | {"adapter": "x"}).status_code == 403
        assert client.put("/adapters/x", json={"source": "x"}).status_code == 403
        assert client.get("/metrics").status_code == 403
    with shared.server.client() as client:
        assert client.post("/generate", json=QUESTION).status_code == 401
        assert client.get("/health/ready").status_code == 200


def test_time_is_up(shared: Shared) -> None:
    """What is unfinished is a beginning of what it would have been."""
    with shared.client("single") as client:
        whole = generate(client, **QUESTION, max_new_tokens=LONG)
        begun_at = time.monotonic()
        cut = generate(client, **QUESTION, max_new_tokens=LONG, timeout_seconds=0.5)
        seconds = time.monotonic() - begun_at
    assert cut["completions"][0]["finish_reason"] == "timeout"
    assert 0 < cut["usage"]["completion_tokens"] < LONG
    assert text_of(whole).startswith(text_of(cut))
    assert seconds >= 0.5


async def test_time_is_up_before_its_turn(shared: Shared) -> None:
    async with shared.async_client() as client:
        running = [
            asyncio.create_task(shared.ask(client, "busy", max_new_tokens=LONG)) for _ in range(16)
        ]
        with shared.client("watch") as watch:
            await until(lambda: metric(watch, "softserve_sequences_waiting") > 0, PLENTY_SECONDS)
        late = await shared.ask(client, "busy", max_new_tokens=1, timeout_seconds=0.2)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert late.status_code == 503
    assert late.json()["error"]["type"] == "request_timed_out"
