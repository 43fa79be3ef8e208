"""A server that records what it is sent, and answers what a test says."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

# The files of an adapter, which nobody reads.
CONFIG, WEIGHTS = b'{"peft_type": "LORA"}', bytes(range(256)) * 8
KEPT_BYTES = 1 << 20


@dataclass(frozen=True)
class Received:
    """A request as the server sees it. Of a large body only the length is known."""

    method: str
    path: str
    headers: dict[str, str]
    num_bytes: int
    body: bytes

    @property
    def call(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def form(self) -> list[tuple[str, str | None, bytes]]:
        """The field, the file name and the content of each part."""
        boundary = self.headers["content-type"].partition("boundary=")[2].encode()
        parts = self.body.split(b"--" + boundary)[1:-1]
        return [_part(part.removeprefix(b"\r\n").removesuffix(b"\r\n")) for part in parts]


def _part(part: bytes) -> tuple[str, str | None, bytes]:
    head, _, content = part.partition(b"\r\n\r\n")
    names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
    return names["name"], names.get("filename"), content


class Server(HTTPServer):
    """Answers each method with what the test says, and records what it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[Received] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        self.before_answer: Callable[[], object] = lambda: None

    @property
    def calls(self) -> list[str]:
        return [received.call for received in self.received]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        num_bytes = left = int(self.headers.get("content-length", 0))
        body = b""
        while left:
            chunk = self.rfile.read(min(left, 1 << 16))
            left -= len(chunk)
            body += chunk if num_bytes <= KEPT_BYTES else b""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append(Received(self.command, self.path, headers, num_bytes, body))
        self.server.before_answer()
        status, answer = self.server.answers[self.command]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"" if answer is None else json.dumps(answer).encode())

    do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass
