"""A new version on a part of the requests, and on copies of them, with the real engine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_files import write_lora
from tests.server.peft_reference import SMOLLM2_MODULES
from tests.server.requests import adapter_form, add_adapter, generate, text_of

NAME = "tried"
PATH = f"/adapters/{NAME}"
QUESTION = {"prompt": "Once upon a time", "max_new_tokens": 8, "adapter": NAME}
SESSIONS = [f"session-{i}" for i in range(8)]
PLENTY_SECONDS = 60.0

Texts = dict[str, str]


@pytest.fixture
def versions(client: httpx.Client, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The live version, and one that is put beside it."""
    live, new = (
        write_lora(tmp_path / str(seed), SMOLLM2_MODULES, 8, seed=seed, scale=0.1)
        for seed in range(2)
    )
    old = add_adapter(client, NAME, live)
    yield old, put_beside(client, new)
    client.delete(PATH).raise_for_status()


@pytest.fixture
def texts(client: httpx.Client, versions: tuple[str, str]) -> Texts:
    """What each version answers."""
    texts = {
        version: text_of(generate(client, **QUESTION | {"adapter": f"{NAME}@{version}"}))
        for version in versions
    }
    assert len(set(texts.values())) == 2
    return texts


def put_beside(client: httpx.Client, folder: Path) -> str:
    """The version that is put beside the live one."""
    response = client.put(PATH, files=adapter_form(folder), params={"live": "false"})
    assert response.status_code == 200, response.text
    version: str = response.json()["versions"][0]["version"]
    return version


def post(client: httpx.Client, action: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"{PATH}/{action}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ask(client: httpx.Client, texts: Texts, session: str | None = None) -> str:
    """The version that answers, whose text it is."""
    headers = {} if session is None else {"x-softserve-session": session}
    response = client.post("/generate", json=QUESTION, headers=headers)
    assert response.status_code == 200, response.text
    version: str = response.json()["adapter"]["version"]
    assert text_of(response.json()) == texts[version]
    return version


def test_a_split_from_beginning_to_end(
    client: httpx.Client, versions: tuple[str, str], texts: Texts
) -> None:
    old, new = versions
    assert {ask(client, texts) for _ in range(2)} == {old}

    post(client, "split", versions={old: 60, new: 40}, sticky="session")
    before = {session: ask(client, texts, session) for session in SESSIONS}
    assert set(before.values()) == {old, new}
    assert {session: ask(client, texts, session) for session in SESSIONS} == before

    post(client, "split", versions={old: 20, new: 80}, sticky="session")
    after = {session: ask(client, texts, session) for session in SESSIONS}
    assert all(after[session] == new for session in SESSIONS if before[session] == new)
    assert list(after.values()).count(new) > list(before.values()).count(new)

    assert post(client, "rollback")["live"] == old
    assert {ask(client, texts, session) for session in SESSIONS[:3]} == {old}

    post(client, "split", versions={old: 20, new: 80}, sticky="session")
    assert {session: ask(client, texts, session) for session in SESSIONS} == after
    assert post(client, "promote")["live"] == new
    assert {ask(client, texts, session) for session in SESSIONS[:3]} == {new}
    assert post(client, "rollback")["live"] == old


def test_a_shadow(client: httpx.Client, versions: tuple[str, str], texts: Texts) -> None:
    old, new = versions
    post(client, "shadow", version=new, percent=100)
    assert ask(client, texts) == old
    results = completed(client, 1)

    assert (results["failed"], results["skipped"]) == (0, 0)
    assert (results["compared"], results["equal"]) == (1, 0)
    assert 0.0 <= results["agreement"] < 1.0
    assert (results["live_tokens"], results["shadow_tokens"]) == (8, 8)
    assert results["live_seconds"] > 0
    assert results["shadow_seconds"] > 0


def test_a_shadow_of_the_same_weights_agrees(
    client: httpx.Client, versions: tuple[str, str], texts: Texts, tmp_path: Path
) -> None:
    """Another version by its digest, which computes the same."""
    same = write_lora(tmp_path / "same", SMOLLM2_MODULES, 8, seed=0, scale=0.1, lora_dropout=0.05)
    version = put_beside(client, same)
    assert version not in versions

    post(client, "shadow", version=version, percent=100)
    ask(client, texts)
    results = completed(client, 1)
    assert (results["equal"], results["agreement"]) == (1, 1.0)


def completed(client: httpx.Client, number: int) -> dict[str, Any]:
    """The results of a shadow, once it has completed so many copies."""
    deadline = time.monotonic() + PLENTY_SECONDS
    while time.monotonic() < deadline:
        results: dict[str, Any] = client.get(PATH).json()["shadow"]["results"]
        if results["completed"] == number:
            return results
        time.sleep(0.05)
    raise AssertionError(f"not completed: {results}")
