"""A small server that answers what a test says, in turn, and counts its connections."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One answer; without `is_whole`, the connection ends before the body does."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    is_whole: bool = True

    @property
    def content(self) -> bytes:
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def refusal(status: int, type: str, **headers: str) -> Answer:
    """The one error body."""
    error = {"type": type, "message": f"{type}: do something", "param": "x"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"error": error}, named)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.calls.append(f"{self.command} {self.path}")
        self.server.bodies.append(body)
        self.server.headers.append({name.lower(): each for name, each in self.headers.items()})
        answer = self.server.next_answer()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = len(answer.content) + (0 if answer.is_whole else 1)
        self.send_header("content-length", str(length))
        self.end_headers()
        self.wfile.write(answer.content)
        self.close_connection = not answer.is_whole

    do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Of several answers the last is given again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.num_connections = 0
        self.calls: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._answers: list[Answer] = [Answer()]

    def answer(self, *answers: Answer) -> None:
        self._answers = list(answers)

    def next_answer(self) -> Answer:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def events(*data: Any, done: bool = True) -> Answer:
    """A stream of server-sent events."""
    lines = [f"data: {json.dumps(each, ensure_ascii=False)}" for each in data]
    return raw_events([*lines, *(["data: [DONE]"] if done else [])])


def raw_events(events: Iterable[str]) -> Answer:
    content = "".join(f"{event}\n\n" for event in events).encode()
    return Answer(200, content, {"content-type": "text/event-stream"})
