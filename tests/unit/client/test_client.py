"""Both clients: the same operations, one connection, the server's own errors, safe tries."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.http.errors import HTTP_TYPES, STATUSES
from softserve import client as package
from softserve.client import (
    Call,
    ClientError,
    EngineDown,
    Interrupted,
    InvalidRequest,
    NotAnUpload,
    NotFound,
    NotSoftserve,
    QuotaExceeded,
    Refused,
    ServerFull,
    Unreachable,
    as_model,
    retries,
)
from softserve.client.errors import CLASSES
from softserve.schema.adapters import ADAPTER_FILES
from softserve.schema.server import Health
from tests.unit.cli.test_adapter_tables import FIRST, adapter, version
from tests.unit.client.answering import Answer, Server, events, refusal
from tests.unit.client.asking import Ask

LIVE = Answer(body={"status": "live"})
FULL = refusal(503, "server_full", retry_after="2")
# No more of an answer than a test looks at.
ADAPTER = Answer(body=adapter("x", version(FIRST)))


def test_calls_share_a_connection(server: Server, asking: Ask) -> None:
    server.answer(ADAPTER, Answer(204), refusal(422, "invalid_request"))

    def remove(client: Any) -> Any:
        return client.adapters.remove("x")

    assert asking(server.url, lambda client: client.adapters.show("x"), key="secret").live == FIRST
    assert asking(server.url, remove, key="secret") is None
    assert server.calls == ["GET /adapters/x", "DELETE /adapters/x"]
    assert [each["authorization"] for each in server.headers] == ["Bearer secret"] * 2


def test_one_client_keeps_its_connection(server: Server) -> None:
    server.answer(LIVE, ADAPTER, Answer(204), events(done=True), LIVE)
    with package.Client(server.url, session="s") as client:
        client.ready()
        client.adapters.show("x")
        client.adapters.remove("x")
        with client.stream("a") as stream:
            assert list(stream) == []
        client.ready()
    assert server.num_connections == 1
    assert {each["x-softserve-session"] for each in server.headers} == {"s"}


@pytest.mark.parametrize(
    ("ask", "call", "body"),
    [
        (lambda c: c.generate("a", top_k=3), "POST /generate", {"prompt": "a", "top_k": 3}),
        (
            lambda c: c.generate(["a", "b"], adapter=None),
            "POST /generate",
            {"prompt": ["a", "b"], "adapter": None},
        ),
        (lambda c: c.inspect("a"), "POST /inspect", {"prompt": "a"}),
        (
            lambda c: c.icl("t", {"x": "y"}, shots=1),
            "POST /icl/generate",
            {"template": "t", "inputs": {"x": "y"}, "shots": 1},
        ),
        (
            lambda c: c.render("t", [{"x": "y"}]),
            "POST /icl/render",
            {"template": "t", "inputs": [{"x": "y"}]},
        ),
        (lambda c: c.adapters.list(), "GET /adapters", None),
        (
            lambda c: c.adapters.add("x", "me/x", revision="v1", force=True, task=0),
            "PUT /adapters/x",
            {"source": "me/x", "revision": "v1", "force": True, "task": 0},
        ),
        (
            lambda c: c.adapters.add("x", "me/x", live=False),
            "PUT /adapters/x?live=false",
            {"source": "me/x"},
        ),
        (lambda c: c.adapters.rollback("x"), "POST /adapters/x/rollback", {}),
        (
            lambda c: c.adapters.rollback("x", wait="all"),
            "POST /adapters/x/rollback?wait=all",
            {},
        ),
        (
            lambda c: c.templates.add("x", {"query_format": "q"}, live=False, wait="all"),
            "PUT /icl/templates/x?live=false&wait=all",
            {"query_format": "q"},
        ),
        (lambda c: c.adapters.promote("x", "ab"), "POST /adapters/x/promote", {"version": "ab"}),
        (
            lambda c: c.templates.split("x", {"ab": 9, "cd": 1}, sticky="key"),
            "POST /icl/templates/x/split",
            {"versions": {"ab": 9, "cd": 1}, "sticky": "key"},
        ),
        (
            lambda c: c.templates.shadow("x", "ab", percent=5),
            "POST /icl/templates/x/shadow",
            {"version": "ab", "percent": 5},
        ),
        (lambda c: c.adapters.end_shadow("x"), "DELETE /adapters/x/shadow", None),
        (
            lambda c: c.templates.add("x", {"query_format": "q"}),
            "PUT /icl/templates/x",
            {"query_format": "q"},
        ),
        (
            lambda c: c.keys.create("x", roles=["user"], weight=2.0),
            "POST /keys",
            {"name": "x", "roles": ["user"], "weight": 2.0},
        ),
        (lambda c: c.keys.list(), "GET /keys", None),
        (lambda c: c.keys.revoke("x"), "DELETE /keys/x", None),
        (lambda c: c.info(), "GET /info", None),
        (lambda c: c.usage(), "GET /usage", None),
        (lambda c: c.metrics(), "GET /metrics", None),
        (lambda c: c.drain(), "POST /drain", None),
    ],
)
def test_what_is_sent(server: Server, asking: Ask, ask: Any, call: str, body: Any) -> None:
    server.answer(refusal(404, "not_found"))

    with pytest.raises(NotFound):
        asking(server.url, ask)

    assert server.calls == [call]
    assert server.bodies == [b"" if body is None else json.dumps(body).encode()]


def test_any_other_call(server: Server, asking: Ask) -> None:
    server.answer(LIVE)
    call = Call("GET", "/health/live", as_model(Health))
    assert asking(server.url, lambda client: client.send(call)) == Health(status="live")


@pytest.mark.parametrize("name", ["../info", "a/b", ""])
def test_what_cannot_be_a_name(server: Server, asking: Ask, name: str) -> None:
    with pytest.raises(InvalidRequest, match="an adapter's name has at most 64"):
        asking(server.url, lambda client: client.adapters.show(name))
    assert server.calls == []


def test_an_upload(server: Server, asking: Ask, tmp_path: Path) -> None:
    server.answer(FULL, ADAPTER)
    for name in ADAPTER_FILES:
        (tmp_path / name).write_bytes(name.encode() * 10_000)
    heard: list[tuple[int, int]] = []

    def upload(client: Any) -> Any:
        return client.adapters.upload(
            "x", tmp_path, task=3, live=False, on_progress=lambda *each: heard.append(each)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("softserve.client.connection.Retries.pause_after", lambda *_: 0.0)
        assert asking(server.url, upload).live == FIRST

    size = sum((tmp_path / name).stat().st_size for name in ADAPTER_FILES)
    assert server.calls == ["PUT /adapters/x?live=false"] * 2
    # The second try sends it whole again, and says so.
    assert [sent for sent, _ in heard].count(size) == 2
    assert {every for _, every in heard} == {size}
    for body in server.bodies:
        assert all((tmp_path / name).read_bytes() in body for name in ADAPTER_FILES)
        assert b'name="task"\r\n\r\n3\r\n' in body


def test_what_is_no_upload(server: Server, asking: Ask, tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotAnUpload, match=r"has no adapter_config|cannot be read"):
            asking(server.url, lambda client, source=source: client.adapters.upload("x", source))
    assert server.calls == []


@pytest.mark.parametrize("type", [name for _, name in STATUSES.values()])
def test_every_error_of_the_server_has_a_class(server: Server, type: str) -> None:
    server.answer(refusal(400, type))
    with (
        package.Client(server.url, retry_seconds=0) as client,
        pytest.raises(Refused) as raised,
    ):
        client.info()
    error = raised.value
    assert error.__class__ is CLASSES[type] is not Refused
    assert error.__class__.__name__ in package.__all__
    assert (error.type, error.param, error.status) == (type, "x", 400)
    assert str(error) == error.message == f"{type}: do something"


def test_no_class_is_for_what_no_server_says() -> None:
    said = {name for _, name in STATUSES.values()} | set(HTTP_TYPES.values())
    assert CLASSES.keys() - said == {"too_many_connections", "internal_error"}


def test_an_error_that_is_not_known_yet(server: Server, asking: Ask) -> None:
    server.answer(refusal(418, "teapot"))
    with pytest.raises(Refused, match="teapot: do something") as raised:
        asking(server.url, lambda client: client.info())
    assert raised.value.status == 418


@pytest.mark.parametrize(
    "answer",
    [Answer(body=b"<html>"), Answer(404, {"detail": "Not Found"}), Answer(500, b""), Answer()],
)
def test_another_kind_of_server(server: Server, asking: Ask, answer: Answer) -> None:
    server.answer(answer)
    with pytest.raises(NotSoftserve, match="does not answer as softserve does: check the URL"):
        asking(server.url, lambda client: client.info())


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://", "http://[", "ftp://localhost"])
def test_what_is_no_url(asking: Ask, url: str) -> None:
    with pytest.raises(ClientError):
        asking(url, lambda client: client.info(), retry_seconds=0)


def test_a_key_that_no_header_can_hold(asking: Ask) -> None:
    with pytest.raises(ClientError, match="the key has a line break") as raised:
        asking("http://127.0.0.1:1", lambda client: client.info(), key="sec\nret")
    assert "ret" not in str(raised.value).removeprefix("the key has a line break or the like")


@pytest.mark.parametrize("type", ["server_full", "engine_starting", "server_draining"])
def test_what_has_not_begun_is_tried_again(
    server: Server, asking: Ask, pauses: list[float], type: str
) -> None:
    server.answer(refusal(503, type, retry_after="7"), refusal(503, type, retry_after="1"), LIVE)

    assert asking(server.url, lambda client: client.ready()).status == "live"

    assert len(server.calls) == 3
    first, second = pauses
    assert 7 < first < 8
    assert 1 < second < 2


def test_a_quota_is_waited_for(server: Server, asking: Ask, pauses: list[float]) -> None:
    server.answer(refusal(429, "quota_exceeded", retry_after="3"), LIVE)
    asking(server.url, lambda client: client.ready())
    assert 3 < pauses[0] < 4


def test_a_stream_that_has_not_begun_is_tried_again(server: Server, pauses: list[float]) -> None:
    server.answer(FULL, events({"prompt_index": 0, "index": 0, "text": "a"}))
    with package.Client(server.url) as client, client.stream("a") as stream:
        assert [event.text for event in stream] == ["a"]
    assert len(server.calls) == 2
    assert len(pauses) == 1


def test_the_deadline(server: Server, asking: Ask, pauses: list[float]) -> None:
    """Where the server says to wait for longer than there is time, nobody waits at all."""
    server.answer(refusal(429, "quota_exceeded", retry_after="40"))
    with pytest.raises(QuotaExceeded) as raised:
        asking(server.url, lambda client: client.ready(), retry_seconds=30)
    assert raised.value.retry_after_seconds == 40
    assert pauses == []
    assert len(server.calls) == 1


def test_nobody_has_to_try_again(server: Server, asking: Ask, pauses: list[float]) -> None:
    server.answer(FULL)
    with pytest.raises(ServerFull):
        asking(server.url, lambda client: client.ready(), retry_seconds=0)
    assert (len(server.calls), pauses) == (1, [])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(503, "engine_died", retry_after="1"), EngineDown),
        (refusal(503, "engine_stalled", retry_after="1"), EngineDown),
        (refusal(503, "request_timed_out", retry_after="1"), Refused),
        (refusal(500, "internal_error"), Refused),
        (Answer(503, b"from a proxy", {"retry-after": "1"}), NotSoftserve),
        (Answer(200, b"{", is_whole=False), Interrupted),
    ],
)
def test_what_may_have_begun_is_not_tried_again(
    server: Server, asking: Ask, pauses: list[float], answer: Answer, error: type[ClientError]
) -> None:
    server.answer(answer)
    with pytest.raises(error):
        asking(server.url, lambda client: client.generate("a"))
    assert (len(server.calls), pauses) == (1, [])


def test_no_connection_is_tried_again(
    asking: Ask, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ever more slowly, until the time is up."""
    with Server() as server:
        url = server.url
    # Real time does not go on with pauses that nobody waits for.
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: sum(pauses)))
    with pytest.raises(Unreachable) as raised:
        asking(url, lambda client: client.info(), retry_seconds=20)
    assert str(raised.value).startswith(f"no answer from {url} (")
    assert sum(pauses) < 20
    assert len(pauses) >= 5
    assert pauses[-1] > pauses[0]


def test_what_is_silent_for_too_long(asking: Ask) -> None:
    # It accepts the connection, and nobody answers.
    with Server() as server, pytest.raises(Interrupted, match="was silent for too long"):
        asking(server.url, lambda client: client.info(), timeout_seconds=0.05)
