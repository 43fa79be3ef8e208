"""A client that leaves frees its slot and harms no other; a full server says so."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess
from tests.server.requests import generate, metric, stream_async, text_of

# Far longer than any test waits: only an abort can end it in time.
ENDLESS = {"prompt": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True}
FREED_WITHIN_SECONDS = 20.0


async def leave_after(client: httpx.AsyncClient, num_lines: int, **body: Any) -> None:
    """Start a stream and disconnect after some lines."""
    async with client.stream("POST", "/generate", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        async for _ in response.aiter_lines():
            num_lines -= 1
            if num_lines == 0:
                return


async def wait_until_running(server: ServerProcess, num_sequences: int) -> None:
    """Wait until the engine itself runs exactly so many completions."""
    async with asyncio.timeout(FREED_WITHIN_SECONDS):
        while await asyncio.to_thread(running_in_engine, server) != num_sequences:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def running_in_engine(server: ServerProcess) -> float:
    with server.client() as client:
        return metric(client, "vllm:num_requests_running") + metric(
            client, "vllm:num_requests_waiting"
        )


async def complete_beside_one_who_leaves(
    server: ServerProcess,
    client: httpx.Client,
    async_client: httpx.AsyncClient,
    bodies: list[dict[str, Any]],
    endless: dict[str, Any],
) -> None:
    """Two streams get what each gets alone, though who asked between them leaves in the middle."""
    expected = [text_of(generate(client, **body)) for body in bodies]

    first, _, third = await asyncio.gather(
        stream_async(async_client, **bodies[0]),
        leave_after(async_client, 10, **endless),
        stream_async(async_client, **bodies[1]),
    )

    assert [first.text(), third.text()] == expected
    assert first.done
    assert third.done
    await wait_until_running(server, 0)


async def test_the_middle_of_three_leaves_and_two_complete(
    server: ServerProcess, client: httpx.Client, async_client: httpx.AsyncClient
) -> None:
    bodies = [
        {"prompt": prompt, "max_new_tokens": 60, "ignore_eos": True}
        for prompt in ("The sea is", "The city is")
    ]
    await complete_beside_one_who_leaves(server, client, async_client, bodies, ENDLESS)


@pytest.mark.parametrize(
    ("body", "num_sequences"),
    [
        (ENDLESS, 1),
        (ENDLESS | {"prompt": ["Red", "Green", "Blue"], "n": 4, "temperature": 1.0}, 12),
    ],
    ids=["one completion", "every completion of every prompt"],
)
async def test_leaving_a_request_without_stream_frees_its_place(
    server: ServerProcess, body: dict[str, Any], num_sequences: int
) -> None:
    async with server.async_client() as leaver:
        request = asyncio.create_task(leaver.post("/generate", json=body))
        await wait_until_running(server, num_sequences)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    await wait_until_running(server, 0)


async def test_a_client_that_leaves_is_counted_as_aborted(
    server: ServerProcess, client: httpx.Client, async_client: httpx.AsyncClient
) -> None:
    def aborted() -> str:
        lines = client.get("/metrics").text.splitlines()
        name = 'softserve_requests_total{endpoint="generate",outcome="aborted"}'
        return next((line for line in lines if line.startswith(name)), name + " 0.0")

    before = float(aborted().rsplit(" ", 1)[1])
    await leave_after(async_client, 2, **ENDLESS)
    await wait_until_running(server, 0)

    assert float(aborted().rsplit(" ", 1)[1]) == before + 1


async def test_a_full_server_refuses_and_recovers(
    server: ServerProcess, client: httpx.Client, async_client: httpx.AsyncClient
) -> None:
    body = ENDLESS | {"prompt": ["A", "B", "C", "D"], "n": 16, "temperature": 1.0}
    async with server.async_client() as holder:
        request = asyncio.create_task(holder.post("/generate", json=body))
        await wait_until_running(server, 64)

        refused = await async_client.post("/generate", json={"prompt": "Hi"})
        ready = await async_client.get("/health/ready")
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await wait_until_running(server, 0)

    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "server_full"
    assert int(refused.headers["retry-after"]) > 0
    assert ready.status_code == 200
    assert generate(client, prompt="Hi", max_new_tokens=1)["usage"]["completion_tokens"] == 1


async def test_mixed_requests_at_once_get_what_each_gets_alone(
    client: httpx.Client, async_client: httpx.AsyncClient
) -> None:
    controls: dict[str, dict[str, Any]] = {
        "Item": {},
        "Page": {"temperature": 0.8, "seed": 3},
        "Line": {"repetition_penalty": 1.2},
        "Word": {"logprobs": 1, "return_token_ids": True},
        "Step": {"top_k": 5, "seed": 40, "stop": ["."]},
        "Rule": {"min_new_tokens": 10, "presence_penalty": 1.0},
    }
    bodies = [
        {"prompt": f"{start} number {i},", "max_new_tokens": 20, **given}
        for i in range(4)
        for start, given in controls.items()
    ]
    alone = [generate(client, **body)["completions"] for body in bodies]

    together = await asyncio.gather(*(async_client.post("/generate", json=body) for body in bodies))

    for expected, response in zip(alone, together, strict=True):
        got = json.loads(response.content)["completions"]
        assert without_logprobs(got) == without_logprobs(expected)


def without_logprobs(completions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Their last digits depend on the batch."""
    return [{k: v for k, v in c.items() if k != "logprobs"} for c in completions]
