"""The watched folder of a real server: what appears there is live, what is bad there is told."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_files import write_lora
from tests.server.peft_reference import SMOLLM2_MODULES
from tests.server.process import ServerProcess
from tests.server.requests import generate, text_of

NAME = "dropped-in"
PLENTY_SECONDS = 60.0


def wait_for(shown: Callable[[], Any], expected: Any) -> None:
    deadline = time.monotonic() + PLENTY_SECONDS
    while (seen := shown()) != expected:
        assert time.monotonic() < deadline, f"still {seen}, not {expected}"
        time.sleep(0.05)


def test_a_folder_comes_changes_spoils_and_goes(
    server: ServerProcess, client: httpx.Client, tmp_path: Path
) -> None:
    watched = server.adapter_dir / NAME
    made = [
        write_lora(tmp_path / str(seed), SMOLLM2_MODULES, 4, seed=seed, scale=0.1)
        for seed in range(2)
    ]

    def show() -> dict[str, Any]:
        response = client.get(f"/adapters/{NAME}")
        shown: dict[str, Any] = response.json() if response.status_code == 200 else {}
        return shown

    def num_versions() -> int:
        return len(show().get("versions", []))

    def ask() -> tuple[str, str]:
        answer = generate(client, prompt="Once upon a time", max_new_tokens=8, adapter=NAME)
        return answer["adapter"]["version"], text_of(answer)

    shutil.copytree(made[0], watched)
    wait_for(num_versions, 1)
    first = ask()
    for file in made[1].iterdir():
        shutil.copy(file, watched)
    wait_for(num_versions, 2)
    second = ask()

    assert first[0] != second[0]
    assert first[1] != second[1]
    assert show()["versions"][0]["source"] == "adapter_dir"

    weights = watched / "adapter_model.safetensors"
    weights.write_bytes(b"\x10" + bytes(7) + b"this is not JSON")
    wait_for(lambda: show()["rejected"] is not None, expected=True)
    assert ask() == second

    shutil.copy(made[1] / weights.name, watched)
    wait_for(lambda: show()["rejected"], None)
    assert ask() == second

    shutil.rmtree(watched)
    wait_for(lambda: show()["live"], None)
    gone = client.post("/generate", json={"prompt": "Hi", "adapter": NAME})
    assert gone.status_code == 404

    client.post(f"/adapters/{NAME}/rollback").raise_for_status()
    assert ask()[0] in {first[0], second[0]}
    client.delete(f"/adapters/{NAME}").raise_for_status()


@pytest.mark.parametrize("content", ["nothing", "garbage"])
def test_a_folder_without_an_adapter_is_told_or_ignored(
    server: ServerProcess, client: httpx.Client, content: str
) -> None:
    folder = server.adapter_dir / f"holds-{content}"
    folder.mkdir()
    if content == "garbage":
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(bytes(64))

        def shown() -> list[str]:
            return [each["name"] for each in client.get("/adapters").json()["adapters"]]

        wait_for(shown, [folder.name])
        rejected = client.get(f"/adapters/{folder.name}").json()
        refused = client.post("/generate", json={"prompt": "Hi", "adapter": folder.name})
        assert rejected["rejected"]
        assert rejected["live"] is None
        assert refused.status_code == 404
        assert rejected["rejected"] in refused.json()["error"]["message"]
    shutil.rmtree(folder)
    wait_for(lambda: client.get("/adapters").json(), {"adapters": []})
