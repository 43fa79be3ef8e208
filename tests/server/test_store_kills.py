"""The server is killed at any moment of its changes, and its registry is whole each time."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx

from tests.adapter_files import as_files, lora_config, lora_tensors
from tests.fake_engine import ARCHITECTURE, adapter_mark
from tests.server.store_process import StoreProcess, serving_store

NUM_KILLS = 20
LONGEST_LIFE_SECONDS = 1.0
NUM_VERSIONS = 5
RETENTION = 3

TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "{{ text }} = {{ output }}",
    "query_format": "{{ text }} =",
}
ADAPTERS: list[dict[str, Any]] = [
    {"files": [("file", file) for file in as_files(lora_config(), tensors)]}
    for tensors in (lora_tensors(ARCHITECTURE.modules, seed=seed) for seed in range(NUM_VERSIONS))
]
TEMPLATES: list[dict[str, Any]] = [
    {"json": TEMPLATE | {"instruction": f"Mood {number}?"}} for number in range(NUM_VERSIONS)
]


class State(NamedTuple):
    """The version that is live, None for a name that is not there, and those of a split."""

    live: str | None = None
    split: frozenset[str] = frozenset()


@dataclass
class Name:
    """A name that is changed again and again, and what its answers said of it.

    `may_be` has the state that it is in, and while a change is open the one that this leads to.
    """

    path: str
    uploads: list[dict[str, Any]]
    digests: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    state: State = field(default_factory=State)
    may_be: set[State] = field(default_factory=lambda: {State()})

    def change(self, client: httpx.Client, random: Random) -> None:
        """One change, of a random kind."""
        upload, beside, split = self.upload, self.put_beside, self.split
        changes = (upload, upload, beside, split, split, self.promote, self.roll_back, self.remove)
        random.choice(changes)(client, random)

    def upload(self, client: httpx.Client, random: Random) -> None:
        number = random.randrange(NUM_VERSIONS)
        # One that is live already stays so, in a split too.
        to = self.state if self.digests[number] == self.state.live else State(self.digests[number])
        self._send(client, "PUT", "", to, **self.uploads[number])

    def put_beside(self, client: httpx.Client, random: Random) -> None:
        number = random.randrange(NUM_VERSIONS)
        self._send(client, "PUT", "?live=false", self.state, **self.uploads[number])

    def split(self, client: httpx.Client, random: Random) -> None:
        versions = frozenset(self.history[:2]) | {self.state.live or ""}
        if len(self.history) > 1 and self.state.live is not None:
            weights = {"versions": dict.fromkeys(versions, 1)}
            self._send(client, "POST", "/split", State(self.state.live, versions), json=weights)

    def promote(self, client: httpx.Client, random: Random) -> None:
        if self.history:
            version = random.choice(self.history)
            self._send(client, "POST", "/promote", State(version), json={"version": version})

    def roll_back(self, client: httpx.Client, random: Random) -> None:
        live = self.state.live
        older = self.history[self.history.index(live) + 1 :] if live else []
        to = older[0] if older and not self.state.split else live
        self._send(client, "POST", "/rollback", State(to))

    def remove(self, client: httpx.Client, random: Random) -> None:
        self._send(client, "DELETE", "", State())

    def _send(
        self, client: httpx.Client, method: str, action: str, to: State, **content: Any
    ) -> None:
        self.may_be = {self.state, to}
        response = client.request(method, self.path + action, **content)
        # Nothing to roll back to or to remove, nothing to put a version beside, or a split.
        if response.status_code not in (404, 409):
            assert response.is_success, response.text
            self._learn(response.json() if response.content else None)
            assert self.state == to
        self.may_be = {self.state}

    def look(self, client: httpx.Client) -> None:
        """What the server has of it must be what was there before or after the last change."""
        response = client.get(self.path)
        self._learn(response.json() if response.status_code != 404 else None)
        assert self.state in self.may_be
        assert self.state.split <= set(self.history)

    def _learn(self, shown: dict[str, Any] | None) -> None:
        self.state, self.history = State(), []
        if shown is not None:
            assert shown["rejected"] is None
            split = shown["split"] or {"versions": {}}
            self.state = State(shown["live"], frozenset(split["versions"]))
            self.history = [version["version"] for version in shown["versions"]]


def adapter(name: str) -> Name:
    return Name(f"/adapters/{name}", ADAPTERS)


def template(name: str) -> Name:
    return Name(f"/icl/templates/{name}", TEMPLATES)


def test_20_kills_in_the_middle_of_changes(tmp_path: Path) -> None:
    names = [adapter("first"), adapter("second"), template("first"), template("second")]
    random = Random(13)  # noqa: S311 (the moments of the kills)
    with serving_store(tmp_path, adapter_retention=RETENTION) as server, server.client() as client:
        for name in names:
            learn_digests(client, name)
    for number in range(NUM_KILLS):
        with serving_store(tmp_path, adapter_retention=RETENTION) as server:
            look_at_everything(server, names)
            with ThreadPoolExecutor(len(names)) as executor:
                changing = [executor.submit(keep_changing, server, name, number) for name in names]
                time.sleep(random.uniform(0, LONGEST_LIFE_SECONDS))
                server.kill()
                for each in changing:
                    each.result()
    with serving_store(tmp_path, adapter_retention=RETENTION) as server:
        look_at_everything(server, names)


def learn_digests(client: httpx.Client, name: Name) -> None:
    """What the server calls each version, which it then forgets."""
    for upload in name.uploads:
        response = client.put(name.path, **upload)
        assert response.status_code == 200, response.text
        name.digests.append(response.json()["live"])
    assert client.delete(name.path).status_code == 204


def keep_changing(server: StoreProcess, name: Name, seed: int) -> None:
    """Until the server is gone."""
    random = Random(f"{seed} {name.path}")  # noqa: S311 (which changes)
    with server.client() as client, suppress(httpx.TransportError):
        while True:
            name.change(client, random)


def look_at_everything(server: StoreProcess, names: list[Name]) -> None:
    """Each name is as its answers left it, each of its versions runs, and nothing else is kept."""
    with server.client() as client:
        for name in names:
            name.look(client)
            for digest in name.history:
                run(client, name, digest)
    on_disk = {path.name for path in server.folder.rglob("versions/*")}
    assert on_disk == {digest for name in names for digest in name.history}


def run(client: httpx.Client, name: Name, digest: str) -> None:
    reference = f"{name.path.rpartition('/')[2]}@{digest}"
    if name.uploads is ADAPTERS:
        body = {"prompt": "hello", "adapter": reference}
        answer = client.post("/generate", json=body).json()
        assert answer["completions"][0]["text"] == f"{adapter_mark(digest)}hello"
    else:
        filled = {"template": reference, "inputs": {"text": "hello"}}
        response = client.post("/icl/render", json=filled)
        assert response.status_code == 200, response.text
