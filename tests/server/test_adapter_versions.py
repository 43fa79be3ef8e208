"""Versions on the real engine: replacing, rolling back and removing adapters while they serve."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.adapter_files import write_lora, write_soft_prompt
from tests.server.peft_reference import HIDDEN_SIZE, SMOLLM2_MODULES
from tests.server.process import ServerProcess
from tests.server.requests import (
    OpenStream,
    adapter_form,
    add_adapter,
    generate,
    put_adapter,
    text_of,
)

PROMPT = "Once upon a time"
NAME = "swapped"
NUM_SWAPS = 100
NUM_CLIENTS = 6
QUESTION = {"prompt": PROMPT, "max_new_tokens": 8, "adapter": NAME}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three LoRAs whose texts differ."""
    parent = tmp_path_factory.mktemp("versions")
    return [
        write_lora(parent / str(seed), SMOLLM2_MODULES, 8, seed=seed, scale=0.1)
        for seed in range(3)
    ]


@pytest.fixture(autouse=True)
def _free_name(client: httpx.Client) -> Iterator[None]:
    yield
    client.delete(f"/adapters/{NAME}")


def ask(client: httpx.Client, name: str = NAME) -> tuple[str, str]:
    """The version that answers, and its text."""
    answer = generate(client, **QUESTION | {"adapter": name})
    return answer["adapter"]["version"], text_of(answer)


def state_of(client: httpx.Client) -> list[tuple[str, bool, bool]]:
    """Each version, whether it is live and whether it is loaded, newest first."""
    shown = client.get(f"/adapters/{NAME}").json()
    return [(each["version"], each["live"], each["loaded"]) for each in shown["versions"]]


class Swapping:
    """One name under continuous load while it is replaced; `live` is None while it changes."""

    def __init__(self, client: httpx.AsyncClient, texts: dict[str, str]) -> None:
        self.client = client
        self.texts = texts
        self.live: str | None = None
        self.num_changes = 0
        self.answered_by: list[str] = []

    async def ask(self) -> None:
        before = self.live, self.num_changes
        response = await self.client.post("/generate", json=QUESTION)
        assert response.status_code == 200, response.text
        answer = response.json()
        version = answer["adapter"]["version"]
        assert text_of(answer) == self.texts[version]
        if before == (self.live, self.num_changes) and self.live is not None:
            assert version == self.live
        self.answered_by.append(version)

    async def keep_asking(self, over: asyncio.Event) -> None:
        while not over.is_set():
            await self.ask()

    async def replace(self, folder: Path) -> None:
        self.live, self.num_changes = None, self.num_changes + 1
        response = await self.client.put(f"/adapters/{NAME}", files=adapter_form(folder))
        assert response.status_code == 200, response.text
        self.live = response.json()["live"]
        # The very next request uses it.
        await self.ask()


async def test_a_swap_storm(
    server: ServerProcess, client: httpx.Client, folders: list[Path]
) -> None:
    """Nobody fails, and every text is that of the version which the answer names."""
    texts = {}
    for folder in folders[:2]:
        add_adapter(client, NAME, folder)
        version, text = ask(client)
        texts[version] = text
    assert len(set(texts.values())) == 2

    async with server.async_client() as http:
        swapping, over = Swapping(http, texts), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_CLIENTS):
                group.create_task(swapping.keep_asking(over))
            for i in range(NUM_SWAPS):
                await swapping.replace(folders[i % 2])
            over.set()

    assert len(swapping.answered_by) >= NUM_SWAPS + NUM_CLIENTS
    assert set(swapping.answered_by) == set(texts)


async def test_a_stream_ends_on_the_version_that_it_began_with(
    async_client: httpx.AsyncClient, client: httpx.Client, folders: list[Path]
) -> None:
    old = add_adapter(client, NAME, folders[0])
    long = QUESTION | {"max_new_tokens": 100, "ignore_eos": True}
    expected = text_of(generate(client, **long))
    stream = OpenStream(async_client, **long)
    await stream.started.wait()

    new = await asyncio.to_thread(add_adapter, client, NAME, folders[1])
    while_streaming = await asyncio.to_thread(state_of, client)
    streamed = await stream.finished

    assert while_streaming == [(new, True, True), (old, False, True)]
    assert streamed.text() == expected
    assert streamed.of()[-1]["adapter"] == {"name": NAME, "version": old}
    assert ask(client)[0] == new
    assert state_of(client) == [(new, True, True), (old, False, False)]


def test_rollback_and_pinned_versions(client: httpx.Client, folders: list[Path]) -> None:
    versions, texts = [], []
    for folder in folders:
        versions.append(add_adapter(client, NAME, folder))
        texts.append(ask(client)[1])
    assert len(set(texts)) == 3

    client.post(f"/adapters/{NAME}/rollback").raise_for_status()
    assert ask(client) == (versions[1], texts[1])
    assert ask(client, f"{NAME}@{versions[2][:12]}") == (versions[2], texts[2])
    rolled = client.post(f"/adapters/{NAME}/rollback", json={"version": versions[0][:8]})
    assert rolled.json()["live"] == versions[0]
    assert ask(client) == (versions[0], texts[0])
    nothing_older = client.post(f"/adapters/{NAME}/rollback")

    assert nothing_older.status_code == 409
    assert ask(client) == (versions[0], texts[0])


async def test_a_removed_adapter_drains(
    async_client: httpx.AsyncClient, client: httpx.Client, folders: list[Path]
) -> None:
    add_adapter(client, NAME, folders[0])
    long = QUESTION | {"max_new_tokens": 60, "ignore_eos": True}
    expected = text_of(generate(client, **long))
    stream = OpenStream(async_client, **long)
    await stream.started.wait()

    removed = await async_client.delete(f"/adapters/{NAME}")
    was_done = stream.finished.done()
    gone = await async_client.post("/generate", json=QUESTION)

    assert removed.status_code == 204
    assert was_done
    assert (await stream.finished).text() == expected
    assert gone.status_code == 404
    assert gone.json()["error"]["type"] == "adapter_not_found"


def test_a_soft_prompt_is_replaced_too(client: httpx.Client, tmp_path: Path) -> None:
    """Its KV cache must not be mistaken for that of the version before."""
    body = {"prompt": PROMPT * 40, "max_new_tokens": 8, "soft_prompt": NAME}
    texts: dict[str, str] = {}
    for _ in range(2):
        for seed in range(3):
            folder = write_soft_prompt(tmp_path / str(seed), 20, HIDDEN_SIZE, seed=seed, scale=1.0)
            version = add_adapter(client, NAME, folder)
            answer = generate(client, **body)
            assert answer["soft_prompt"] == {"name": NAME, "version": version}
            assert texts.setdefault(version, text_of(answer)) == text_of(answer)
    assert len(set(texts.values())) == 3


def test_more_adapters_than_the_engine_holds(client: httpx.Client, tmp_path: Path) -> None:
    """The shared server holds four: the others wait on disk, and load when they are asked for."""
    names = [f"many-{i}" for i in range(7)]
    for i, name in enumerate(names):
        folder = write_lora(tmp_path / name, SMOLLM2_MODULES, 4, seed=i, scale=0.1)
        add_adapter(client, name, folder)
    answers = {name: ask(client, name) for name in names}
    loaded = [
        adapter["name"]
        for adapter in client.get("/adapters").json()["adapters"]
        for version in adapter["versions"]
        if version["loaded"] and adapter["kind"] == "lora"
    ]

    assert len({text for _, text in answers.values()}) > 1
    assert len(loaded) == 4
    assert {name: ask(client, name) for name in reversed(names)} == answers
    for name in names:
        assert client.delete(f"/adapters/{name}").status_code == 204


def test_a_version_that_is_damaged_on_disk_ends_nothing(
    server: ServerProcess, client: httpx.Client, folders: list[Path], tmp_path: Path
) -> None:
    """It passed every check when it was added, and fails to load when it is asked for again."""
    before = generate(client, prompt=PROMPT, max_new_tokens=8)
    old = add_adapter(client, NAME, folders[0])
    new = add_adapter(client, NAME, folders[1])
    stored = server.adapter_store / "versions" / old / "adapter_model.safetensors"
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1000])

    refused = client.post(f"/adapters/{NAME}/rollback")
    pinned = client.post("/generate", json=QUESTION | {"adapter": f"{NAME}@{old}"})

    assert refused.status_code == pinned.status_code == 422
    assert refused.json()["error"]["type"] == "adapter_rejected"
    assert ask(client)[0] == new
    assert generate(client, prompt=PROMPT, max_new_tokens=8)["completions"] == before["completions"]


def test_another_kind_under_a_name_is_refused(
    client: httpx.Client, folders: list[Path], tmp_path: Path
) -> None:
    live = add_adapter(client, NAME, folders[0])
    other = write_soft_prompt(tmp_path / "prompt", 4, HIDDEN_SIZE)

    refused = put_adapter(client, NAME, other)

    assert refused.status_code == 409
    assert ask(client)[0] == live
