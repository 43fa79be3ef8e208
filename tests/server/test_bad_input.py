"""Nothing that a client sends may give a 5xx, kill the engine, or harm another request."""

import json
import socket
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case

from tests.bad_bodies import BAD_BODIES
from tests.server.process import ServerProcess
from tests.server.requests import generate, text_of

JSON_HEADERS = {"content-type": "application/json"}
ENDPOINTS = [("POST", "/generate"), ("POST", "/inspect"), ("GET", "/info"), ("GET", "/metrics")]


@pytest.fixture(autouse=True)
def serves_on(client: httpx.Client) -> Any:
    """After every test the server gives the very same text as ever."""
    yield
    answer = generate(client, prompt="Count: 1, 2, 3, 4,", max_new_tokens=5)
    assert text_of(answer) == " 5, 6"


def test_a_corpus_of_bad_bodies(client: httpx.Client) -> None:
    """One test for all of it, so that the engine sees them in a row."""
    answered = {}
    for name, body, _, _ in BAD_BODIES:
        response = client.post("/generate", content=body, headers=JSON_HEADERS)
        answered[name] = (response.status_code, response.json()["error"]["param"])

    assert answered == {name: (status, param) for name, _, status, param in BAD_BODIES}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x " * 9000},
        {"prompt": "Hi", "top_k": 49_153},
        {"prompt": ["Hi", "x " * 9000], "n": 2, "temperature": 1.0},
        {"prompt": "Hi", "max_new_tokens": 8192},
    ],
    ids=["long prompt", "top_k over the vocabulary", "one long prompt of two", "window and one"],
)
def test_what_only_the_model_can_refuse(client: httpx.Client, body: dict[str, Any]) -> None:
    response = client.post("/generate", json=body)

    assert response.status_code == 422
    assert set(response.json()["error"]) == {"type", "message", "param"}


@pytest.mark.parametrize(
    "controls",
    [
        {"temperature": 2.0, "top_k": 49_152},
        {"temperature": 0.01},
        {"top_p": 1e-300},
        {"min_p": 1.0},
        {"top_p": 5e-324, "top_k": 1, "min_p": 1.0, "temperature": 2.0},
        {"repetition_penalty": 0.1},
        {"repetition_penalty": 10.0},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"temperature": 0.01, "repetition_penalty": 10.0, "presence_penalty": 2.0},
        {"temperature": 1.0, "seed": 2**63 - 1, "n": 2},
        {"logprobs": 20, "temperature": 2.0},
        {"min_new_tokens": 20, "ignore_eos": True, "stop": ["a", "e"]},
    ],
    ids=str,
)
def test_the_extremes_that_are_allowed_work(client: httpx.Client, controls: dict[str, Any]) -> None:
    answer = generate(client, prompt="Extremes are", max_new_tokens=20, **controls)

    assert answer["usage"]["completion_tokens"] > 0
    json.dumps(answer, allow_nan=False)


def test_a_request_that_is_not_http(server: ServerProcess) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for noise in [b"\x16\x03\x01\x02\x00\x01\x00", b"POST /generate\r\n\r\n", b"\x00" * 1000]:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


def test_a_body_that_ends_early(server: ServerProcess) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        "content-length: 1000\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b'{"prompt": "Hi')


def small(case: Case) -> None:
    """The same request with little to generate."""
    if isinstance(case.body, dict) and isinstance(case.body.get("max_new_tokens"), int):
        case.body["max_new_tokens"] = min(case.body["max_new_tokens"], 2)
        if isinstance(case.body.get("n"), int):
            case.body["n"] = min(case.body["n"], 2)
    elif isinstance(case.body, dict) and case.path == "/generate":
        case.body["max_new_tokens"] = 1


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_fuzz_over_the_openapi(server: ServerProcess, method: str, path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation = schema[path][method]

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: Case) -> None:
        small(case)
        # Not the ten seconds that it waits otherwise: a machine may be slow.
        response = case.call(base_url=server.url, timeout=300)
        assert response.status_code < 500, response.text

    check()
