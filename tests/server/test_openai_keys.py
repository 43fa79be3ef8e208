"""Keys, limits and retries as the official client meets them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai import OpenAI

from app.access.key_file import KeyFile
from softserve.schema.keys import CreateKey
from tests.server.process import ServerProcess, running, wait_until
from tests.server.requests import metric
from tests.server.tiny_models import SMALL

KEYS = [
    CreateKey(name="plain"),
    CreateKey(name="single", max_requests_in_flight=1),
    CreateKey(name="short", completion_tokens_per_minute=100),
    CreateKey(name="bound", adapters=["none-*"]),
    CreateKey(name="watch", roles=["operator"]),
]
MAX_SEQUENCES = 4
ENDLESS: dict[str, Any] = {"max_tokens": 3000, "extra_body": {"ignore_eos": True}}
PATIENCE_SECONDS = 30.0
PLENTY_SECONDS = 300.0


class Shared:
    """A server, and clients with its keys."""

    def __init__(self, server: ServerProcess, secrets: dict[str, str]) -> None:
        self.server = server
        self.secrets = secrets

    @contextmanager
    def ai(self, key: str, **fields: Any) -> Iterator[OpenAI]:
        secret = self.secrets.get(key, key)
        with OpenAI(base_url=f"{self.server.url}/v1", api_key=secret, **fields) as client:
            yield client

    def watch(self, name: str) -> float:
        with self.server.client() as client:
            client.headers["authorization"] = f"Bearer {self.secrets['watch']}"
            return metric(client, name)

    def drain(self) -> None:
        with self.server.client() as client:
            headers = {"authorization": f"Bearer {self.secrets['watch']}"}
            client.post("/drain", headers=headers).raise_for_status()


@pytest.fixture(scope="module")
def shared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    file = KeyFile(path)
    file.open(may_be_missing=True)
    secrets = {key.name: file.create(key)[1] for key in KEYS}
    with running(
        *("--model", str(tiny_model), "--served-model-name", "tiny", *SMALL),
        *("--keys-file", str(path), "--max-sequences-in-flight", str(MAX_SEQUENCES)),
        *("--drain-timeout-seconds", str(PLENTY_SECONDS)),
    ) as server:
        yield Shared(server.wait_until_ready(), secrets)


@contextmanager
def busy(ai: OpenAI, **fields: Any) -> Iterator[openai.Stream[Any]]:
    """A stream that has begun and does not end by itself."""
    stream = ai.completions.create(model="tiny", prompt="a", stream=True, **ENDLESS | fields)
    try:
        next(iter(stream))
        yield stream
    finally:
        stream.close()


def ask(ai: OpenAI, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 2}
    return ai.completions.create(**asked | fields)


def test_who_may_not(shared: Shared) -> None:
    with shared.ai("sk-wrong") as ai, pytest.raises(openai.AuthenticationError) as wrong:
        ask(ai)
    assert wrong.value.code == "invalid_api_key"
    with shared.ai("watch") as ai, pytest.raises(openai.PermissionDeniedError, match="role"):
        ask(ai)
    with shared.ai("bound") as ai:
        assert ask(ai).model == "tiny"
        with pytest.raises(openai.PermissionDeniedError) as denied:
            ask(ai, model="other")
        assert denied.value.param == "model"
        assert [model.id for model in ai.models.list()] == ["tiny"]


def test_a_quota_is_a_rate_limit_error(shared: Shared) -> None:
    with shared.ai("short", max_retries=0) as ai:
        ask(ai, max_tokens=150, extra_body={"ignore_eos": True})
        with pytest.raises(openai.RateLimitError) as limited:
            ask(ai)
    assert limited.value.code == "rate_limit_exceeded"
    assert int(limited.value.response.headers["retry-after"]) >= 1


def test_a_full_server_is_an_internal_server_error(shared: Shared) -> None:
    with shared.ai("plain", max_retries=0) as ai:
        many = {"n": MAX_SEQUENCES, "temperature": 1.0}
        with busy(ai, **many), pytest.raises(openai.InternalServerError) as full:
            ask(ai)
    assert (full.value.status_code, full.value.code) == (503, "server_full")
    assert int(full.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("key", "fields", "reason"),
    [
        ("single", {}, "quota_exceeded"),
        ("plain", {"n": MAX_SEQUENCES, "temperature": 1.0}, "server_full"),
    ],
)
def test_the_client_tries_again_when_it_is_told_to(
    shared: Shared,
    key: str,
    fields: dict[str, Any],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """429 and 503: it waits for as long as `retry-after` says, and then has its answer."""
    waits: list[float] = []
    with shared.ai(key, max_retries=3) as ai, busy(ai, **fields) as stream:

        def wait(seconds: float) -> None:
            waits.append(seconds)
            stream.close()
            wait_until(idle, PATIENCE_SECONDS)

        def idle() -> bool:
            return shared.watch("softserve_sequences_in_flight") == 0

        its_time = SimpleNamespace(**vars(time) | {"sleep": wait})
        monkeypatch.setattr("openai._base_client.time", its_time)
        before = rejections(shared, reason)
        answer = ask(ai)
        monkeypatch.undo()
    assert answer.choices[0].finish_reason == "length"
    assert rejections(shared, reason) == before + 1
    (waited,) = waits
    # Its own first wait would be half a second, and a part of that; what it is told is in seconds.
    assert waited >= 1
    assert waited == int(waited)


def rejections(shared: Shared, reason: str) -> float:
    with shared.server.client() as client:
        client.headers["authorization"] = f"Bearer {shared.secrets['watch']}"
        lines = client.get("/metrics").text.splitlines()
    start = f'softserve_rejections_total{{reason="{reason}"}}'
    return next(float(line.split()[-1]) for line in lines if line.startswith(start))


def test_a_drain_lets_a_stream_end_and_takes_no_other(shared: Shared) -> None:
    """It ends the server: no test comes after it."""
    with shared.ai("plain", max_retries=0) as ai, busy(ai) as stream:
        shared.drain()
        shared.server.wait_for_event("draining")
        with pytest.raises(openai.InternalServerError) as refused:
            ask(ai)
        assert refused.value.code == "server_draining"
        last = list(stream)[-1]
    assert last.choices[0].finish_reason == "length"
    assert shared.server.wait_for_exit() == 0
