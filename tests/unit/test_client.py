"""Both clients: the same calls, one connection, the server's own sentences."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from softserve.client import AsyncClient, Call, Client, ClientError, Nothing
from softserve.schema.server import Health
from tests.threaded import in_thread

LIVE = Call("GET", "/health/live", Health)
REMOVE = Call("DELETE", "/adapters/x", Nothing)
REFUSED = Call("POST", "/refused", Health, {"temperature": 3})


class Handler(BaseHTTPRequestHandler):
    """Answers GET with a health, DELETE with nothing, and refuses POST."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def do_GET(self) -> None:
        self._answer(200, {"status": "live"})

    def do_DELETE(self) -> None:
        self._answer(204, None)

    def do_POST(self) -> None:
        self.server.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer(422, {"error": {"type": "x", "message": "no: lower it", "param": None}})

    def _answer(self, status: int, answer: Any) -> None:
        content = b"" if answer is None else json.dumps(answer).encode()
        self.server.keys.append(self.headers["authorization"])
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.num_connections = 0
        self.keys: list[str | None] = []
        self.body: Any = None


@pytest.fixture
def server() -> Iterator[Server]:
    with in_thread(Server()) as server:
        yield server


def test_calls_share_a_connection(server: Server) -> None:
    with Client(server.url, "secret") as client:
        assert client.send(LIVE).status == "live"
        assert client.send(REMOVE) == Nothing()
        with pytest.raises(ClientError, match="no: lower it") as raised:
            client.send(REFUSED)
    assert raised.value.type == "x"
    assert server.body == {"temperature": 3}
    assert server.keys == ["Bearer secret"] * 3
    assert server.num_connections == 1


async def test_asynchronous_calls_share_a_connection(server: Server) -> None:
    async with AsyncClient(server.url, "secret") as client:
        assert (await client.send(LIVE)).status == "live"
        assert await client.send(REMOVE) == Nothing()
        with pytest.raises(ClientError, match="no: lower it") as raised:
            await client.send(REFUSED)
    assert raised.value.type == "x"
    assert server.body == {"temperature": 3}
    assert server.keys == ["Bearer secret"] * 3
    assert server.num_connections == 1


def test_an_answer_without_its_content(server: Server) -> None:
    with (
        Client(server.url) as client,
        pytest.raises(ClientError, match="does not answer as softserve does"),
    ):
        client.send(Call("DELETE", "/adapters/x", Health))
