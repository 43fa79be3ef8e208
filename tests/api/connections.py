"""Bytes to the app behind the server's own sockets, for what httpx cannot send."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app import server
from app.server import Server
from app.settings import Settings
from tests.api.support import until
from tests.fake_engine import FakeEngine

Address = tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """An answer as it came, and what came after it."""

    status: int
    headers: dict[str, str]
    rest: bytes

    @property
    def error(self) -> dict[str, Any]:
        body = json.loads(self.rest)
        assert list(body) == ["error"]
        error: dict[str, Any] = body["error"]
        return error


@asynccontextmanager
async def listening(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    engine: FakeEngine | None = None,
    **settings: Any,
) -> AsyncIterator[Address]:
    """The address of a server with a fake engine that is ready."""
    engine = engine or FakeEngine()
    monkeypatch.setattr(server, "VLLMEngine", lambda settings: engine)
    own = {name: folder / name for name in ("adapter_store", "adapter_dir", "template_dir")}
    trusted = {"trusted_host": ("softserve", "x")}
    configured = Settings(port=0, **own | trusted | settings)
    running = Server(configured)
    listener = server._bind(configured)
    address = listener.getsockname()
    serving = asyncio.create_task(running._serve([listener]))
    try:
        await until(
            lambda: running.started and running._app.state.service.admission.refusal is None
        )
        yield address
    finally:
        running.should_exit = True
        await serving


async def sent(address: Address, data: bytes, *, then_eof: bool = False) -> Answer:
    """What comes back until the connection is closed; all of `data` is sent before it is read."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        await writer.drain()
        if then_eof:
            writer.write_eof()
        return parsed(await reader.read())
    finally:
        writer.close()


def parsed(answer: bytes) -> Answer:
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), headers, rest)


def post(body: bytes, *headers: str, path: str = "/generate", version: str = "1.1") -> bytes:
    """A JSON request, after which the connection is to be closed."""
    lines = [
        f"POST {path} HTTP/{version}",
        "host: softserve",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(headers or ["connection: close"]),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
