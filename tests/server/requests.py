"""Short forms of what the tests ask a server."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx

from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE


def generate(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """POST /generate, which must succeed."""
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def text_of(answer: dict[str, Any]) -> str:
    """The text of the only completion."""
    (completion,) = answer["completions"]
    text: str = completion["text"]
    return text


def parse_events(lines: Iterable[str]) -> Iterator[dict[str, Any] | str]:
    """The data of server-sent events; `[DONE]` as it is."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


@dataclass
class Streamed:
    """A whole stream: its events, whether it ended with [DONE], and the joined texts."""

    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    @classmethod
    def of_lines(cls, lines: Iterable[str]) -> "Streamed":
        streamed = cls()
        for event in parse_events(lines):
            assert not streamed.done, "an event after [DONE]"
            if isinstance(event, str):
                streamed.done = True
            else:
                streamed.events.append(event)
        return streamed

    def text(self, prompt_index: int = 0, index: int = 0) -> str:
        return "".join(event["text"] for event in self.of(prompt_index, index))

    def of(self, prompt_index: int = 0, index: int = 0) -> list[dict[str, Any]]:
        key = (prompt_index, index)
        return [e for e in self.events if (e["prompt_index"], e["index"]) == key]


def stream(client: httpx.Client, **body: Any) -> Streamed:
    """POST /generate with `stream`, to its end."""
    with client.stream("POST", "/generate", json=body | {"stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return Streamed.of_lines(response.iter_lines())


async def stream_async(client: httpx.AsyncClient, **body: Any) -> Streamed:
    """As `stream`, beside other requests."""
    async with client.stream("POST", "/generate", json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        return Streamed.of_lines([line async for line in response.aiter_lines()])


class OpenStream:
    """A stream that is being read in the background; `started` after its first event."""

    def __init__(self, client: httpx.AsyncClient, **body: Any) -> None:
        self.started = asyncio.Event()
        self.raw: list[str] = []
        self.finished = asyncio.create_task(self._read(client, body | {"stream": True}))

    async def _read(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Streamed:
        async with client.stream("POST", "/generate", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                self.raw.append(line)
                self.started.set()
        return Streamed.of_lines(self.raw)


def metric(client: httpx.Client, name: str) -> float:
    """The sum of a metric's samples, over all labels."""
    lines = client.get("/metrics").text.splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if line.split("{")[0].split(" ")[0] == name]
    assert values, f"no metric {name}"
    return sum(map(float, values))


def adapter_form(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """The two files of a folder, as parts of a form."""
    return [("file", (file, (folder / file).read_bytes())) for file in (CONFIG_FILE, WEIGHTS_FILE)]


def put_adapter(client: httpx.Client, name: str, folder: Path, **fields: str) -> httpx.Response:
    """PUT /adapters/{name} with the two files of a folder, whatever it answers."""
    return client.put(f"/adapters/{name}", files=adapter_form(folder), data=fields)


def add_adapter(client: httpx.Client, name: str, folder: Path) -> str:
    """PUT an adapter, which must succeed; the version that is live then."""
    response = put_adapter(client, name, folder)
    assert response.status_code == 200, response.text
    version: str = response.json()["live"]
    return version


def share_before_divergence(got: Iterable[list[int]], expected: Iterable[list[int]]) -> float:
    """Of all expected tokens: those before the first that differs."""
    num_equal = num_expected = 0
    for mine, theirs in zip(got, expected, strict=True):
        pairs = zip(mine, theirs, strict=False)
        num_equal += len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        num_expected += len(theirs)
    return num_equal / num_expected
