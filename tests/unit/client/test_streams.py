"""Streams: from bytes to events, however they are cut, and how they end."""

import json
from typing import Any

import pytest

from softserve.client import AsyncClient, Client, CompletionEnd, Interrupted, NotSoftserve, Piece
from softserve.client.errors import EngineDown
from softserve.client.streams import EventReader
from softserve.schema.controls import Sampling
from tests.unit.client.answering import Server, events, raw_events
from tests.unit.client.asking import Ask

KEY = {"prompt_index": 0, "index": 0}
END: dict[str, Any] = {
    **KEY,
    "text": "",
    "finish_reason": "stop",
    "id": "1",
    "model": "echo",
    "sampling": Sampling().model_dump(),
    "usage": {
        "prompt_tokens": 1,
        "virtual_tokens": 0,
        "completion_tokens": 2,
        "cached_tokens": 0,
    },
    "timings": {"queue": 0.0, "ttft": 1.0, "total": 2.0},
}
# What Python's own splitting of lines would cut at.
TEXTS = ["a\u2028b", "c\x85d", "e\u2029", "日本"]
PIECES = [{**KEY, "text": text} for text in TEXTS]


def _events(asking: Ask, server: Server) -> list[Any]:
    if asking.__name__ == "ask":

        def listen(client: Client) -> list[Any]:
            with client.stream("a") as stream:
                return list(stream)

        return list(asking(server.url, listen))

    async def listen_async(client: AsyncClient) -> list[Any]:
        async with client.stream("a") as stream:
            return [event async for event in stream]

    return list(asking(server.url, listen_async))


def test_events(server: Server, asking: Ask) -> None:
    server.answer(events(*PIECES, END))
    *pieces, end = _events(asking, server)
    assert pieces == [Piece(**each) for each in PIECES]
    assert end == CompletionEnd(**END)
    assert json.loads(server.bodies[0]) == {"stream": True, "prompt": "a"}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_bytes_are_cut_anywhere(size: int, line_end: str) -> None:
    content = events(*PIECES, END).content.replace(b"\n", line_end.encode())
    reader = EventReader()
    found: list[Any] = []
    for start in range(0, len(content), size):
        found += reader.feed(content[start : start + size])
    reader.end()
    assert [event.text for event in found] == [*TEXTS, ""]


def test_an_error_on_the_way(server: Server, asking: Ask) -> None:
    body = {"error": {"type": "engine_died", "message": "it died: try again", "param": None}}
    server.answer(
        raw_events([f"data: {json.dumps(PIECES[0])}", f"event: error\ndata: {json.dumps(body)}"])
    )
    with pytest.raises(EngineDown, match="it died: try again") as raised:
        _events(asking, server)
    assert raised.value.status is None
    assert len(server.calls) == 1


def test_what_came_before_an_error_is_given() -> None:
    body = {"error": {"type": "engine_died", "message": "it died: try again", "param": None}}
    content = raw_events(
        [f"data: {json.dumps(PIECES[0])}", f"event: error\ndata: {json.dumps(body)}"]
    ).content
    found = EventReader().feed(content)
    assert next(found).text == TEXTS[0]
    with pytest.raises(EngineDown):
        next(found)


def test_a_stream_without_its_end(server: Server, asking: Ask) -> None:
    server.answer(events(*PIECES, done=False))
    with pytest.raises(Interrupted, match="broke off before its end"):
        _events(asking, server)
    assert len(server.calls) == 1


def test_what_is_no_event(server: Server, asking: Ask) -> None:
    server.answer(events({"text": 1}))
    with pytest.raises(NotSoftserve):
        _events(asking, server)
