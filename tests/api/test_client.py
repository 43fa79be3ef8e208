"""The client, on the whole app behind a real socket, with a fake engine that echoes."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, TypeAdapter

from softserve.client import (
    AsyncClient,
    Client,
    CompletionEnd,
    Conflict,
    ContextWindowExceeded,
    InvalidRequest,
    NotFound,
    Piece,
    Rejected,
)
from softserve.schema.events import DONE, StreamEvent
from tests.adapter_files import as_files, lora_config, lora_tensors
from tests.api.support import until
from tests.fake_engine import ARCHITECTURE, FakeEngine
from tests.unit.cli.serving import served

TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }}={{ output }}",
    "query_format": "{{ text }}=",
    "separator": ";",
    "labels": ["good", "bad"],
    "examples": [{"text": "a", "output": "good"}],
}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), engine) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def save_lora(folder: Path, seed: int = 0) -> Path:
    for name, content in as_files(lora_config(4), lora_tensors(ARCHITECTURE.modules, 4, seed)):
        (folder / name).write_bytes(content)
    return folder


def test_generate(client: Client) -> None:
    answer = client.generate(["one", "two"], max_new_tokens=2)
    assert [each.text for each in answer.completions] == ["on", "tw"]
    assert answer.sampling.max_new_tokens == 2
    chat = client.generate(messages=[{"role": "user", "content": "hi"}])
    assert chat.completions[0].text == "[user]hi[assistant]"


async def test_generate_asynchronously(async_client: AsyncClient) -> None:
    answer = await async_client.generate("hello", logprobs=1)
    assert answer.completions[0].text == "hello"
    async with async_client.stream("hello", logprobs=1) as events:
        *pieces, end = [event async for event in events]
    assert "".join(piece.text for piece in pieces) == "hello"
    assert isinstance(end, CompletionEnd)
    assert end.usage == answer.usage
    streamed = [
        each for piece in pieces if isinstance(piece, Piece) for each in piece.logprobs or []
    ]
    assert streamed == answer.completions[0].logprobs


def test_adapters(client: Client, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    first = client.adapters.upload(
        "task", save_lora(tmp_path), on_progress=lambda *each: heard.append(each)
    )
    assert heard[-1][0] == heard[-1][1] == first.versions[0].size_bytes
    second = client.adapters.upload("task", save_lora(tmp_path, seed=1))
    assert (second.live, len(second.versions)) != (first.live, 1)
    used = client.generate("x", adapter="task").adapter
    assert used is not None
    assert used.version == second.live
    assert first.live is not None
    assert second.live is not None
    split = client.adapters.split("task", {second.live: 9, first.live: 1}).split
    assert split is not None
    assert split.versions == {second.live: 9, first.live: 1}
    assert client.adapters.rollback("task", first.live).live == first.live
    shadow = client.adapters.shadow("task", second.live, percent=5).shadow
    assert shadow is not None
    assert client.adapters.end_shadow("task").shadow is None
    assert "task" in [each.name for each in client.adapters.list().adapters]
    client.adapters.remove("task")
    with pytest.raises(NotFound) as raised:
        client.adapters.show("task")
    assert raised.value.param == "name"


def test_templates(client: Client) -> None:
    first = client.templates.add("mood", TEMPLATE)
    assert first.template is not None
    # What is shown is what can be added.
    assert client.templates.add("copy", first.template).live == first.live
    answer = client.icl("mood", {"text": "b"}, shots=1)
    assert answer.prompts[0].classification is not None
    rendered = client.render("mood", [{"text": "b"}, {"text": "c"}], shots=1)
    assert [each.prompt for each in rendered.prompts] == ["a=good;b=", "a=good;c="]
    with client.stream_icl("mood", {"text": "b"}, shots=0) as events:
        *pieces, end = events
    assert "".join(piece.text for piece in pieces) == "b="
    assert isinstance(end, CompletionEnd)
    assert end.template is not None
    assert end.template.version == first.live
    with pytest.raises(Conflict):
        client.templates.rollback("mood")
    for name in ("mood", "copy"):
        client.templates.remove(name)


def test_the_server(client: Client) -> None:
    assert client.ready().status == "ready"
    assert client.info().model == "echo"
    client.generate("x")
    assert client.usage().usage[0].requests >= 1
    assert "softserve_requests_total" in client.metrics()
    assert client.inspect("x").tokens[0].token


@pytest.mark.parametrize(
    ("ask", "error", "param"),
    [
        (lambda c: c.generate("x", adapter="none"), NotFound, "adapter"),
        (lambda c: c.generate("x", temperature=3.0), InvalidRequest, "temperature"),
        (lambda c: c.generate("x", temprature=1.0), InvalidRequest, "temprature"),
        (lambda c: c.generate("x" * 300), ContextWindowExceeded, "prompt"),
        (lambda c: c.adapters.add("x", "/no/such"), Rejected, "source"),
        (lambda c: c.keys.list() and c.keys.create("x"), Conflict, None),
    ],
)
def test_refusals(client: Client, ask: Any, error: type[Exception], param: str | None) -> None:
    with pytest.raises(error) as raised:
        ask(client)
    assert getattr(raised.value, "param", None) == param


async def test_leaving_a_stream_ends_the_generation(
    engine: FakeEngine, client: Client, async_client: AsyncClient
) -> None:
    """By `break`, and by an error of the reader."""
    engine.left_early.clear()
    async with async_client.stream("a" * 100) as events:
        async for _ in events:
            engine.hold()
            break
    await until(lambda: len(engine.left_early) == 1)
    engine.release()

    def read() -> None:
        with client.stream("a" * 100) as events:
            for _ in events:
                engine.hold()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    await until(lambda: len(engine.left_early) == 2)
    engine.release()
    assert client.generate("still there").completions[0].text == "still there"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "hello", "logprobs": 1, "return_token_ids": True}),
        ("/icl/generate", {"template": TEMPLATE, "inputs": {"text": "b"}, "shots": 1}),
    ],
)
def test_the_schema_has_all_that_a_stream_sends(url: str, path: str, body: dict[str, Any]) -> None:
    response = httpx.post(f"{url}{path}", json=body | {"stream": True}, trust_env=False)
    events = response.content.decode().split("\n\n")[:-1]
    assert events.pop() == f"data: {DONE}"
    assert len(events) > 1
    adapter: TypeAdapter[BaseModel] = TypeAdapter(StreamEvent)
    for event in events:
        content = event.removeprefix("data: ")
        sent = TypeAdapter(dict[str, Any]).validate_json(content)
        assert adapter.validate_json(content).model_dump(exclude_unset=True) == sent
