"""What cannot be served ends the start: one sentence, exit code 1, soon."""

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from app.engine.model.default import default_model
from app.settings import Settings
from tests.server.process import COMMAND


def fail_to_start(*arguments: str, command: list[str] = COMMAND) -> str:
    """The last line that a server which cannot start writes."""
    ended = subprocess.run(
        [*command, "--log-format", "json", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert '"event": "ready"' not in ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    sentence: str = json.loads(last)["event"] if last.startswith("{") else last
    return sentence


def test_a_folder_that_is_not_there() -> None:
    assert fail_to_start("--model", "/nowhere/at/all") == (
        "there is no folder /nowhere/at/all: give a folder or a hub id to --model"
    )


def test_a_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert fail_to_start("--model", "nobody/no-such-model") == (
        "nobody/no-such-model is not a folder here, and the hub cannot be reached to look for it: "
        "check --model and the network"
    )


def test_a_name_that_is_neither() -> None:
    assert fail_to_start("--model", "what is this?") == (
        "what is this? is neither a folder here nor a hub id (OWNER/NAME): check --model"
    )


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NeverHeardOfIt"], "model_type": "never-heard-of-it"}
    (folder / "config.json").write_text(json.dumps(config))


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()


def remove_tokenizer_of_qwen2(folder: Path) -> None:
    """Its class makes a tokenizer without words of an empty folder."""
    remove_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_config, "has no config.json"),
        (remove_weights, "has no *.safetensors"),
        (truncate_weights, "is damaged"),
        (unknown_architecture, "vLLM cannot serve"),
        (remove_tokenizer, "tokenizer"),
        (remove_tokenizer_of_qwen2, "has no tokenizer that knows any word: copy the tokenizer's"),
    ],
)
def test_a_damaged_model(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    from rich.progress import Progress

    original = default_model(Settings().cache_dir, Progress(disable=True))
    folder = tmp_path / "model"
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)

    assert said in fail_to_start("--model", str(folder))


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [argument if argument != "0" else str(port) for argument in COMMAND]

        sentence = fail_to_start(command=command)

    assert sentence == (
        f"softserve: cannot listen on 127.0.0.1:{port} (Address already in use): "
        "choose another with --host, --port"
    )


def test_an_unknown_engine_argument() -> None:
    assert fail_to_start("--engine-arg", "max-num-sequences=4") == (
        "vLLM has no engine argument 'max_num_sequences'; did you mean max_num_seqs?"
    )


def test_a_context_window_beyond_the_models() -> None:
    assert "8192" in fail_to_start("--context-window", "1000000")


def test_a_precision_that_does_not_exist() -> None:
    ended = subprocess.run(
        [*COMMAND, "--precision", "fp7"], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    assert "'fp7' is not one of" in " ".join(ended.stderr.split())


def test_an_address_that_others_reach_without_keys() -> None:
    assert fail_to_start("--host", "0.0.0.0") == (  # noqa: S104
        "softserve: 0.0.0.0 can be reached from other machines, and requests would need no key: "
        "make keys with `softserve key create` and start with --keys-file, or with "
        "--allow-anonymous to serve whoever comes"
    )


def test_a_file_of_keys_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [{"name": "swordf')
    sentence = fail_to_start("--keys-file", str(path))
    assert sentence == (
        f"softserve: {path} is not a file of keys, or damaged (it is not JSON): restore it, or "
        "name another with --keys-file"
    )
