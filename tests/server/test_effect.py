"""What a version changes, on the real engine: measured as transformers and PEFT have it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.adapters.effect import NO_EFFECT, PROBE_TEXT
from tests.adapter_files import (
    lora_config,
    lora_tensors,
    targeted,
    untrained,
    write_files,
    write_lora,
)
from tests.server.peft_reference import LORAS, SMOLLM2_MODULES, SOFT_PROMPTS, PeftReference
from tests.server.requests import generate, put_adapter

NAME = "measured"


@pytest.fixture(autouse=True)
def _free_name(client: httpx.Client) -> Iterator[None]:
    yield
    client.delete(f"/adapters/{NAME}")


def live_version(client: httpx.Client, folder: Path) -> dict[str, Any]:
    """What is told of the version in a folder when it is added, and later as well."""
    response = put_adapter(client, NAME, folder)
    assert response.status_code == 200, response.text
    shown = client.get(f"/adapters/{NAME}").json()
    assert shown == response.json()
    version: dict[str, Any] = shown["versions"][0]
    assert version["live"]
    return version


def untrained_lora(folder: Path, rank: int = 8) -> Path:
    targets = ["q_proj", "v_proj", "down_proj"]
    modules = {name: SMOLLM2_MODULES[name] for name in targeted(SMOLLM2_MODULES, targets)}
    config = lora_config(rank, target_modules=targets)
    return write_files(folder, config, untrained(lora_tensors(modules, rank)))


@pytest.mark.parametrize("name", [*LORAS, *SOFT_PROMPTS])
def test_the_divergence_is_that_of_peft(
    client: httpx.Client, peft_reference: PeftReference, name: str
) -> None:
    adapted = {"adapter": name} if name in LORAS else {"soft_prompt": name}
    base = peft_reference.next_token_logprobs(PROBE_TEXT)
    with_it = peft_reference.next_token_logprobs(PROBE_TEXT, **adapted)
    expected = float(torch.sum(base.exp() * (base - with_it)))
    assert expected > 1e-3, "it would show little"

    version = live_version(client, peft_reference.path(name))

    assert version["effect"]["kl_divergence"] == pytest.approx(expected, rel=1e-3)
    assert version["effect"]["changed"]
    assert version["warning"] is None


def test_a_lora_that_was_never_trained(client: httpx.Client, tmp_path: Path) -> None:
    version = live_version(client, untrained_lora(tmp_path))

    assert version["effect"] == {"kl_divergence": 0.0, "changed": False}
    assert version["warning"] == NO_EFFECT
    question = {"prompt": PROBE_TEXT, "max_new_tokens": 16}
    adapted = generate(client, **question, adapter=NAME)
    assert adapted["completions"] == generate(client, **question)["completions"]


def test_a_small_effect_is_one(client: httpx.Client, tmp_path: Path) -> None:
    folder = write_lora(tmp_path, SMOLLM2_MODULES, 4, scale=0.01)

    version = live_version(client, folder)

    assert 0.0 < version["effect"]["kl_divergence"] < 1e-3
    assert version["effect"]["changed"]


def test_what_overflows_is_refused_and_harms_nobody(client: httpx.Client, tmp_path: Path) -> None:
    before = live_version(client, write_lora(tmp_path / "fine", SMOLLM2_MODULES))
    question = {"prompt": [PROBE_TEXT] * 32, "max_new_tokens": 2, "adapter": NAME}
    expected = generate(client, **question)["completions"]

    refused = put_adapter(client, NAME, write_lora(tmp_path / "huge", SMOLLM2_MODULES, scale=1e37))

    assert refused.status_code == 422
    assert "the model's scores are not finite numbers" in refused.json()["error"]["message"]
    assert client.get(f"/adapters/{NAME}").json()["live"] == before["version"]
    # As many blocks as the KV cache has: also those that its keys and values have been in.
    for _ in range(-(-num_blocks(client) // 32)):
        assert generate(client, **question)["completions"] == expected


def num_blocks(client: httpx.Client) -> int:
    """Of the KV cache."""
    config = re.search(r'num_gpu_blocks="(\d+)"', client.get("/metrics").text)
    assert config is not None
    return int(config[1])
