"""schemathesis over the OpenAPI document, in process: nothing that a client sends gives a 5xx."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.http.application import create_app
from app.settings import Settings
from tests.api.support import Served, error_of, starting, until_ready
from tests.fake_engine import FakeEngine

SCHEMA = schemathesis.openapi.from_dict(
    create_app(Settings(), FakeEngine(), lambda _: None, lambda: None).openapi()
)
POSTS = (
    *("/generate", "/inspect", "/icl/render", "/icl/generate"),
    *("/v1/completions", "/v1/chat/completions", "/v1/responses"),
)
GETS = ("/info", "/health/live", "/health/ready", "/metrics")
MODEST = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TEXT = st.text(st.characters(exclude_categories=[]))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    *("prompt", "n", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "logprobs"),
    *("max_new_tokens", "min_new_tokens", "stream", "system", "use_chat_template", "num_tokens"),
    *("messages", "prompt_token_ids", "json_schema", "regex", "choice"),
    *("template", "inputs", "shots", "selection", "selection_seed", "examples"),
    *("model", "messages", "input", "max_tokens", "tools", "response_format"),
]


class Fuzzed:
    """An app that stays up over all examples of a test."""

    def __init__(self, runner: asyncio.Runner, served: Served) -> None:
        self._runner = runner
        self._served = served

    def send(self, method: str, path: str, body: bytes = b"") -> int:
        """The status; asserts that it is none of the server's own failures."""
        response = self._runner.run(
            self._served.client.request(
                method, path, content=body, headers={"content-type": "application/json"}
            )
        )
        if response.is_error:
            _, kind, _ = error_of(response)
            # The time that a request gives itself may be too short for anything.
            is_its_own = response.status_code < 500 or kind == "request_timed_out"
            assert is_its_own, (body, response.text)
        return response.status_code


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Fuzzed]:
    with asyncio.Runner() as runner:
        context = starting(FakeEngine())
        served = runner.run(context.__aenter__())
        runner.run(until_ready(served))
        yield Fuzzed(runner, served)
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("path", POSTS)
def test_valid_and_invalid_bodies_of_the_schema(fuzzed: Fuzzed, path: str) -> None:
    statuses = set()

    @MODEST
    @given(SCHEMA[path]["POST"].as_strategy())
    def send(case: Any) -> None:
        try:
            body = json.dumps(case.body).encode()
        except TypeError:  # it stands for no body at all
            body = b""
        statuses.add(fuzzed.send("POST", path, body))

    send()
    # A template that is made up is not there, or its formats do not fit its inputs.
    assert statuses & ({200} if path in {"/generate", "/inspect"} else {200, 400, 404, 422})


@pytest.mark.parametrize("path", POSTS)
@MODEST
@given(
    body=JSON
    | st.dictionaries(st.sampled_from(FIELDS), JSON).map(lambda fields: {"prompt": "a", **fields})
)
def test_any_json(fuzzed: Fuzzed, path: str, body: Any) -> None:
    fuzzed.send("POST", path, json.dumps(body).encode())


@pytest.mark.parametrize("path", POSTS)
@MODEST
@given(body=st.binary() | st.binary().map(lambda value: b'{"prompt": "' + value + b'"}'))
def test_any_bytes(fuzzed: Fuzzed, path: str, body: bytes) -> None:
    fuzzed.send("POST", path, body)


@pytest.mark.parametrize("path", GETS)
def test_a_get_takes_any_body(fuzzed: Fuzzed, path: str) -> None:
    assert [fuzzed.send("GET", path, body) for body in (b"", b"\xff", b"{}")] == [200] * 3
