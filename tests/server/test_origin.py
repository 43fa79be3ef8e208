"""Two real servers with one registry on an S3 server, and two on a folder that are killed."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.adapter_files import as_files, lora_config, lora_tensors, write_lora
from tests.fake_engine import ARCHITECTURE, adapter_mark
from tests.moto_server import BUCKET, Way, asking, s3_server, way_to
from tests.server.process import ServerProcess, running, wait_until
from tests.server.requests import adapter_form, generate, put_adapter, text_of
from tests.server.store_process import StoreProcess, serving_store
from tests.server.tiny_models import LLAMA_MODULES, SMALL

NAME = "shared"
QUESTION = {"prompt": "Once upon a time", "max_new_tokens": 8}
NUM_SWAPS = 8
NUM_KILLS = 8
PLENTY_SECONDS = 60.0
TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
    "instruction": "Mood?",
}

Texts = dict[str, str]


@dataclass
class Pair:
    """Two servers, a client of each, and their way to the origin."""

    servers: list[ServerProcess]
    clients: list[httpx.Client]
    way: Way


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        way = stack.enter_context(way_to(stack.enter_context(s3_server())))
        stack.enter_context(asking(way.port))
        flags = ("--model", str(tiny_model), "--origin", f"s3://{BUCKET}/softserve")
        # Both start at the same time.
        servers = [stack.enter_context(running(*SMALL, *flags)) for _ in range(2)]
        clients = [stack.enter_context(server.wait_until_ready().client()) for server in servers]
        yield Pair(servers, clients, way)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """LoRAs whose texts differ."""
    parent = tmp_path_factory.mktemp("shared")
    return [
        write_lora(parent / str(seed), LLAMA_MODULES, seed=seed, scale=1.0) for seed in range(3)
    ]


def put_for_all(client: httpx.Client, name: str, folder: Path) -> str:
    """The version that is live on every replica now."""
    response = client.put(f"/adapters/{name}", files=adapter_form(folder), params={"wait": "all"})
    assert response.status_code == 200, response.text
    assert [each["serves"] for each in response.json()["replicas"]] == [True, True]
    version: str = response.json()["live"]
    return version


def ask(client: httpx.Client, adapter: str) -> tuple[str, str]:
    """The version that answers, and its text."""
    answer = generate(client, **QUESTION, adapter=adapter)
    return answer["adapter"]["version"], text_of(answer)


@pytest.fixture(scope="module")
def texts(pair: Pair, folders: list[Path]) -> Texts:
    """What each version answers, on both servers alike."""
    versions = [put_for_all(pair.clients[0], NAME, folder) for folder in folders]
    texts = [
        {version: ask(client, f"{NAME}@{version}")[1] for version in versions}
        for client in pair.clients
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == len(folders)
    return texts[0]


def test_what_one_has_the_other_has(pair: Pair, folders: list[Path], texts: Texts) -> None:
    first, second = pair.clients
    for number, client in enumerate((second, first, second)):
        version = put_for_all(client, NAME, folders[number])
        assert ask(first, NAME) == ask(second, NAME) == (version, texts[version])
    rolled_back = second.post(f"/adapters/{NAME}/rollback", params={"wait": "all"}).json()
    assert ask(first, NAME) == (rolled_back["live"], texts[rolled_back["live"]])
    # Nobody has waited: the other server fetches it when it is asked.
    version = put_adapter(first, "new", folders[0]).json()["live"]
    assert ask(second, f"new@{version[:12]}") == (version, texts[version])
    assert first.put("/icl/templates/mood", json=TEMPLATE).status_code == 200
    filled = {"template": "mood", "inputs": {"text": "hi"}}
    assert second.post("/icl/render", json=filled).status_code == 200


async def test_a_storm_of_swaps_under_load(pair: Pair, folders: list[Path], texts: Texts) -> None:
    """Each answer, of either server, is that of the version that it names."""
    over = asyncio.Event()

    async def keep_asking(client: httpx.AsyncClient) -> set[str]:
        seen = set()
        while not over.is_set():
            response = await client.post("/generate", json=QUESTION | {"adapter": NAME})
            assert response.status_code == 200, response.text
            version = response.json()["adapter"]["version"]
            assert text_of(response.json()) == texts[version]
            seen.add(version)
        return seen

    async def keep_swapping(client: httpx.AsyncClient, offset: int) -> None:
        for number in range(NUM_SWAPS):
            folder = folders[(number + offset) % len(folders)]
            response = await client.put(f"/adapters/{NAME}", files=adapter_form(folder))
            assert response.status_code == 200, response.text

    async with pair.servers[0].async_client() as first, pair.servers[1].async_client() as second:
        asking = [asyncio.create_task(keep_asking(each)) for each in (first, second) * 3]
        await asyncio.gather(keep_swapping(first, 0), keep_swapping(second, 1))
        over.set()
        seen = await asyncio.gather(*asking)
    assert len(set().union(*seen)) == len(folders)
    put_for_all(pair.clients[0], NAME, folders[0])
    shown = [client.get(f"/adapters/{NAME}").json() for client in pair.clients]
    assert [each["live"] for each in shown] == [shown[0]["live"]] * 2
    histories = [[version["version"] for version in each["versions"]] for each in shown]
    assert histories[0] == histories[1]


def test_out_of_reach_and_back(pair: Pair, folders: list[Path], texts: Texts) -> None:
    first, second = pair.clients
    version = put_for_all(first, NAME, folders[1])
    pair.way.close()
    for client in pair.clients:
        refused = put_adapter(client, NAME, folders[0])
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "origin_unavailable"
        assert client.get("/health/ready").status_code == 200
        assert ask(client, NAME) == (version, texts[version])
    pair.way.reopen()
    for client in pair.clients:
        wait_until(lambda client=client: origin(client)["reachable"], PLENTY_SECONDS)  # type: ignore[misc]
    version = put_for_all(second, NAME, folders[0])
    assert ask(first, NAME) == (version, texts[version])


def test_one_is_killed(pair: Pair, folders: list[Path], texts: Texts) -> None:
    """The other goes on, does not wait for it for ever, and takes over what one alone does."""
    first, second = pair.clients
    assert origin(first)["publishes"] or origin(second)["publishes"]
    publisher = 0 if origin(first)["publishes"] else 1
    killed, left = pair.servers[publisher], pair.clients[1 - publisher]
    killed.process.kill()
    response = left.put(f"/adapters/{NAME}", files=adapter_form(folders[2]), params={"wait": "all"})
    assert response.status_code == 200
    version = response.json()["live"]
    assert [each["serves"] for each in response.json()["replicas"]] == [True]
    assert ask(left, NAME) == (version, texts[version])
    wait_until(lambda: bool(origin(left)["publishes"]), PLENTY_SECONDS)


def origin(client: httpx.Client) -> dict[str, Any]:
    told: dict[str, Any] = client.get("/adapters").json()["origin"]
    return told


# Servers with a fake engine, which start in a moment, to be killed in the middle of changes.

UPLOADS = [
    [
        ("file", file)
        for file in as_files(lora_config(), lora_tensors(ARCHITECTURE.modules, seed=seed))
    ]
    for seed in range(4)
]
NAMES = ("one", "two", "three")


def keep_changing(server: StoreProcess, seed: int) -> list[tuple[str, str]]:
    """Until the server is gone; the names that nobody else changes, with their versions."""
    random = Random(seed)  # noqa: S311 (which changes)
    own: list[tuple[str, str]] = []
    with server.client() as client, suppress(httpx.TransportError):
        for number in range(1000):
            name = random.choice(NAMES)
            match random.randrange(4):
                case 0:
                    client.post(f"/adapters/{name}/rollback")
                case 1:
                    client.delete(f"/adapters/{name}")
                case 2:
                    client.put(f"/adapters/{name}", files=random.choice(UPLOADS))
                case 3:
                    mine = f"of-{seed}-{number}"
                    response = client.put(f"/adapters/{mine}", files=random.choice(UPLOADS))
                    if response.status_code == 200:
                        own.append((mine, response.json()["live"]))
    return own


def test_kills_in_the_middle_of_changes(tmp_path: Path) -> None:
    """What was answered is there, whoever was killed, and both replicas have the same."""
    (tmp_path / "origin").mkdir()
    random = Random(7)  # noqa: S311 (the moments of the kills)
    url = f"file://{tmp_path}/origin"
    answered: list[tuple[str, str]] = []
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    for number in range(NUM_KILLS):
        with ExitStack() as stack:
            servers = [stack.enter_context(serving_store(home, origin=url)) for home in homes]
            check_alike(servers, answered)
            with ThreadPoolExecutor(2) as executor:
                changing = [
                    executor.submit(keep_changing, server, 2 * number + index)
                    for index, server in enumerate(servers)
                ]
                for server in random.sample(servers, 2):
                    time.sleep(random.uniform(0, 0.5))
                    server.kill()
                for each in changing:
                    answered += each.result()
    with ExitStack() as stack:
        servers = [stack.enter_context(serving_store(home, origin=url)) for home in homes]
        check_alike(servers, answered)


def check_alike(servers: list[StoreProcess], answered: list[tuple[str, str]]) -> None:
    """Both have the same names and versions, what was answered among them, and each one runs."""
    with servers[0].client() as first, servers[1].client() as second:
        wait_until(lambda: pointers(first) == pointers(second), PLENTY_SECONDS)
        found = pointers(first)
        assert [found[name] for name, _ in answered] == [version for _, version in answered]
        for client in (first, second):
            for name, version in found.items():
                body = {"prompt": "hi", "adapter": name}
                answer = client.post("/generate", json=body).json()
                assert answer["completions"][0]["text"] == f"{adapter_mark(version)}hi"


def pointers(client: httpx.Client) -> dict[str, str]:
    shown = client.get("/adapters").json()
    assert shown["origin"]["reachable"]
    return {each["name"]: each["live"] for each in shown["adapters"]}
