"""Whatever is uploaded: a sentence, and the server serves on."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.bad_adapters import BAD_ADAPTERS, BadAdapter
from tests.server.peft_reference import HIDDEN_SIZE, SMOLLM2_MODULES
from tests.server.process import ServerProcess
from tests.server.requests import generate, metric

QUESTION = {"prompt": "The capital of France is", "max_new_tokens": 4}


@pytest.fixture(scope="module")
def answer_before(server: ServerProcess) -> Iterator[list[dict[str, Any]]]:
    """What the base model says, before and after everything here."""
    with server.client() as client:
        before = generate(client, **QUESTION)["completions"]
        yield before
        assert generate(client, **QUESTION)["completions"] == before
        assert client.get("/adapters").json() == {"adapters": []}
        assert list((server.adapter_store / "versions").iterdir()) == []
        assert list((server.adapter_store / "staging").iterdir()) == []


@pytest.mark.parametrize("bad", BAD_ADAPTERS, ids=lambda bad: bad.id)
def test_a_bad_adapter_is_refused(
    client: httpx.Client, answer_before: list[dict[str, Any]], bad: BadAdapter
) -> None:
    files = [("file", file) for file in bad.make(HIDDEN_SIZE, SMOLLM2_MODULES)]

    response = client.put("/adapters/bad", files=files)

    error = response.json()["error"]
    assert (response.status_code, list(response.json())) == (bad.status, ["error"]), error
    assert bad.sentence in error["message"]
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    "name",
    ["%2e%2e", "a%2fb", "..%2f..%2fetc", "a@b", "a%00b", "x" * 65, ".hidden", "-x", "é"],
)
def test_a_bad_name_touches_nothing(
    client: httpx.Client, answer_before: list[dict[str, Any]], name: str
) -> None:
    for response in (
        client.put(f"/adapters/{name}", files={"file": ("adapter_config.json", b"{}")}),
        client.get(f"/adapters/{name}"),
        client.post(f"/adapters/{name}/rollback"),
        client.delete(f"/adapters/{name}"),
    ):
        assert response.status_code in {404, 405, 422}, response.text
        assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    "source", ["/etc", "../../etc", "/proc/self/root/etc", "~/x", "file:///etc/passwd", "a/b/c/d"]
)
def test_a_source_outside_of_the_roots_is_refused(
    client: httpx.Client, answer_before: list[dict[str, Any]], source: str
) -> None:
    response = client.put("/adapters/bad", json={"source": source})

    assert response.status_code == 422, response.text
    assert response.json()["error"]["type"] in {"adapter_rejected", "invalid_request"}


@pytest.mark.parametrize(
    ("field", "reference", "status"),
    [
        ("adapter", "no-such-adapter", 404),
        ("adapter", "../../etc", 404),
        ("adapter", "@", 404),
        ("adapter", "x@", 404),
        ("soft_prompt", "no-such-prompt", 404),
        ("adapter", "", 422),
        ("adapter", "x" * 1000, 422),
        ("adapter", 7, 422),
        ("soft_prompt", ["a"], 422),
    ],
)
def test_a_reference_to_nothing(
    client: httpx.Client,
    answer_before: list[dict[str, Any]],
    field: str,
    reference: Any,
    status: int,
) -> None:
    for path in ("/generate", "/inspect"):
        response = client.post(path, json={"prompt": "Hi", field: reference})

        assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == field


def test_nothing_of_it_was_loaded(client: httpx.Client) -> None:
    """vLLM's own count of requests with adapters did not move for what was refused."""
    assert metric(client, "softserve_sequences_in_flight") == 0
