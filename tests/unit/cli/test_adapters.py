"""`softserve adapter` against a server that records what it is sent."""

import json
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import cli
from tests.unit.cli.recording import CONFIG, WEIGHTS, Server
from tests.unit.cli.test_adapter_tables import (
    EFFECT,
    FIRST,
    SECOND,
    SOFT_PROMPT,
    WITHOUT_EFFECT,
    adapter,
    version,
)

NOT_FOUND = {
    "error": {"type": "adapter_not_found", "message": "no adapter is called 'x'", "param": "name"}
}


def _run(server: Server | None, *arguments: str | Path, **environment: str) -> Result:
    url = "http://127.0.0.1:1" if server is None else f"http://127.0.0.1:{server.server_port}"
    variables = {"TERM": "dumb", "SOFTSERVE_URL": url, **environment}
    return CliRunner().invoke(cli, ["adapter", *map(str, arguments)], env=variables)


def _refused(result: Result) -> str:
    """The one sentence of a command that failed."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("softserve: ").removesuffix("\n")


def test_list(server: Server) -> None:
    server.answers["GET"] = 200, {"adapters": [adapter("my-task", version(FIRST))]}
    result = _run(server, "list")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].split() == [
        "my-task", "LoRA,", "rank", "8", "0.173", "9f86d081884c", "1", "1.8", "MB", "✓", "17",
    ]  # fmt: skip
    assert server.calls == ["GET /adapters"]


def test_show(server: Server) -> None:
    server.answers["GET"] = 200, adapter("my-task", version(FIRST))
    result = _run(server, "show", "my-task")
    assert result.exit_code == 0
    assert result.stdout.startswith("my-task: LoRA, rank 8 on q_proj, v_proj\n")
    assert server.calls == ["GET /adapters/my-task"]


def test_what_is_noted_is_said(server: Server, folder: Path) -> None:
    added = adapter("my-task", version(FIRST, notes=["its lm_head is a copy"]))
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, added)}

    result = _run(server, "add", "my-task", folder)

    assert result.stdout.splitlines()[1:] == [EFFECT, "note: its lm_head is a copy"]


@pytest.mark.parametrize("command", ["add", "rollback"])
def test_a_warning_is_said(server: Server, folder: Path, command: str) -> None:
    warned = adapter("my-task", version(FIRST, **WITHOUT_EFFECT))
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, warned), "POST": (200, warned)}

    result = _run(server, command, "my-task", *([folder] if command == "add" else []))

    assert result.stdout.splitlines()[1:] == ["warning: it changes nothing: check it"]


def test_an_effect_that_is_not_known(server: Server, folder: Path) -> None:
    unmeasured = adapter("my-task", version(FIRST, effect=None))
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, unmeasured)}

    result = _run(server, "add", "my-task", folder)

    assert result.stdout.splitlines()[1:] == [
        "effect: not measured; add it again to have it measured"
    ]


def test_add_a_folder(server: Server, folder: Path) -> None:
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    result = _run(server, "add", "my-task", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"my-task is live: LoRA, rank 8, version 9f86d081884c.\n{EFFECT}\n"
    assert server.calls == ["GET /adapters/my-task", "PUT /adapters/my-task"]
    assert server.received[1].form == [
        ("file", "adapter_config.json", CONFIG),
        ("file", "adapter_model.safetensors", WEIGHTS),
    ]


@pytest.mark.parametrize("name", ["packed.tar.gz", "packed.TGZ", "packed.tar", "packed.zip"])
def test_add_an_archive(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WEIGHTS)
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    assert _run(server, "add", "my-task", tmp_path / name).exit_code == 0
    assert server.received[1].form == [("file", name, WEIGHTS)]


def test_add_with_force(server: Server, folder: Path) -> None:
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    _run(server, "add", "my-task", folder, "--force")
    assert ("force", None, b"true") in server.received[1].form


def test_add_one_task(server: Server, folder: Path) -> None:
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    _run(server, "add", "my-task", folder, "--task", "0")
    assert ("task", None, b"0") in server.received[1].form


def test_add_a_version(server: Server, folder: Path) -> None:
    server.answers = {
        "GET": (200, adapter("my-task", version(FIRST))),
        "PUT": (200, adapter("my-task", version(SECOND), version(FIRST, live=False))),
    }
    assert _run(server, "add", "my-task", folder).stdout == (
        "my-task is live: LoRA, rank 8, version 60303ae22b99.\n"
        "It replaced version 9f86d081884c: `softserve adapter rollback my-task` goes back to "
        f"that.\n{EFFECT}\n"
    )


def test_add_the_same_files(server: Server, folder: Path) -> None:
    same = adapter("my-task", version(FIRST, **SOFT_PROMPT))
    server.answers = {"GET": (200, same), "PUT": (200, same)}
    assert _run(server, "add", "my-task", folder).stdout == (
        "my-task is live: soft prompt, 20 virtual tokens, version 9f86d081884c, as it was: it has "
        f"the same files.\n{EFFECT}\n"
    )


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ([], {"source": "my-team/my-task"}),
        (["--revision", "v2"], {"source": "my-team/my-task", "revision": "v2"}),
        (["--force"], {"source": "my-team/my-task", "force": True}),
        (["--task", "0"], {"source": "my-team/my-task", "task": 0}),
    ],
)
def test_add_what_the_server_finds(
    server: Server, options: list[str], body: dict[str, Any]
) -> None:
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    assert _run(server, "add", "my-task", "my-team/my-task", *options).exit_code == 0
    assert json.loads(server.received[1].body) == body


def test_add_reads_as_it_sends(server: Server, folder: Path) -> None:
    size = 64 << 20
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.truncate(size)
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    tracemalloc.start()
    try:
        assert _run(server, "add", "my-task", folder).exit_code == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert server.received[1].num_bytes > size
    assert peak < size / 4


def test_add_shows_its_progress_on_a_terminal(server: Server, folder: Path) -> None:
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    terminal = {"TERM": "xterm", "FORCE_COLOR": "1", "COLUMNS": "80"}
    result = _run(server, "add", "my-task", folder, **terminal)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stderr)
    bars, checking = shown.split("the server checks and loads it", 1)
    assert re.search(r"trained ━+ 2\.1/2\.1 kB", bars)
    assert "━" not in checking
    assert result.stdout == f"my-task is live: LoRA, rank 8, version 9f86d081884c.\n{EFFECT}\n"


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (["adapter_config.json"], "has no adapter_config.json: give"),
        (["adapter_model.safetensors"], "has no adapter_model.safetensors: give"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "has no adapter_config.json and no adapter_model.safetensors: give",
        ),
    ],
)
def test_a_folder_without_the_files(
    server: Server, folder: Path, missing: list[str], sentence: str
) -> None:
    server.answers["GET"] = 404, NOT_FOUND
    for name in missing:
        (folder / name).unlink()
    assert sentence in _refused(_run(server, "add", "my-task", folder))
    assert server.calls == ["GET /adapters/my-task"]


def test_a_folder_with_the_adapter_one_deeper(server: Server, folder: Path, tmp_path: Path) -> None:
    server.answers = {"GET": (404, NOT_FOUND), "PUT": (200, adapter("my-task", version(FIRST)))}
    (tmp_path / "out").mkdir()
    folder.rename(tmp_path / "out" / "default")
    assert _run(server, "add", "my-task", tmp_path / "out").exit_code == 0
    shutil.copytree(tmp_path / "out" / "default", tmp_path / "out" / "other")
    refusal = _refused(_run(server, "add", "my-task", tmp_path / "out"))
    assert "give one of " in refusal
    assert refusal.index("out/default") < refusal.index("out/other")


def test_a_file_that_is_no_archive(server: Server, folder: Path) -> None:
    server.answers["GET"] = 404, NOT_FOUND
    result = _run(server, "add", "my-task", folder / "adapter_model.safetensors")
    assert "is neither a folder nor a .tar.gz" in _refused(result)
    assert server.calls == ["GET /adapters/my-task"]


def test_a_file_that_goes_meanwhile(server: Server, folder: Path) -> None:
    server.answers["GET"] = 404, NOT_FOUND
    server.before_answer = (folder / "adapter_config.json").unlink
    assert _refused(_run(server, "add", "my-task", folder)).startswith(
        f"{folder} has no adapter_config.json: give"
    )
    assert server.calls == ["GET /adapters/my-task"]


def test_a_revision_of_what_is_here(server: Server, folder: Path) -> None:
    result = _run(server, "add", "my-task", folder, "--revision", "v2")
    assert _refused(result).endswith("only a hub id has revisions: leave --revision out")
    assert server.received == []


@pytest.mark.parametrize(
    ("options", "body"), [([], {}), (["--version", "9f86d0"], {"version": "9f86d0"})]
)
def test_rollback(server: Server, options: list[str], body: dict[str, str]) -> None:
    versions = version(SECOND, live=False), version(FIRST)
    server.answers = {
        "GET": (200, adapter("my-task", version(SECOND), version(FIRST, live=False))),
        "POST": (200, adapter("my-task", *versions)),
    }
    result = _run(server, "rollback", "my-task", *options)
    assert (result.exit_code, result.stdout) == (
        0,
        (
            "my-task is live: LoRA, rank 8, version 9f86d081884c, in place of version "
            f"60303ae22b99.\n{EFFECT}\n"
        ),
    )
    assert server.calls == ["GET /adapters/my-task", "POST /adapters/my-task/rollback"]
    assert json.loads(server.received[1].body) == body


def test_rollback_of_a_retired_name(server: Server) -> None:
    server.answers = {
        "GET": (200, adapter("my-task", version(FIRST, live=False))),
        "POST": (200, adapter("my-task", version(FIRST))),
    }
    assert _run(server, "rollback", "my-task").stdout == (
        f"my-task is live: LoRA, rank 8, version 9f86d081884c.\n{EFFECT}\n"
    )


def test_rollback_to_the_live_version(server: Server) -> None:
    same = adapter("my-task", version(FIRST))
    server.answers = {"GET": (200, same), "POST": (200, same)}
    assert _run(server, "rollback", "my-task", "--version", "9f86d0").stdout == (
        f"my-task is live: LoRA, rank 8, version 9f86d081884c, as it was.\n{EFFECT}\n"
    )


def test_remove(server: Server) -> None:
    server.answers["DELETE"] = 204, None
    result = _run(server, "remove", "my-task")
    assert (result.exit_code, result.stdout) == (0, "my-task is removed.\n")
    assert server.calls == ["DELETE /adapters/my-task"]


COMMANDS = [
    ["list"],
    ["show", "x"],
    ["add", "x", "my-team/x"],
    ["rollback", "x"],
    ["remove", "x"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_servers_own_sentence(server: Server, command: list[str]) -> None:
    refusal = {"type": "server_draining", "message": "it ends: send this elsewhere", "param": None}
    server.answers = dict.fromkeys(("GET", "PUT", "POST", "DELETE"), (503, {"error": refusal}))
    assert _refused(_run(server, *command)) == "it ends: send this elsewhere"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_no_server(command: list[str]) -> None:
    sentence = _refused(_run(None, *command))
    assert sentence.startswith("no answer from http://127.0.0.1:1 (")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_another_kind_of_server(server: Server, command: list[str]) -> None:
    server.answers = dict.fromkeys(("GET", "PUT", "POST", "DELETE"), (404, {"detail": "Not Found"}))
    assert _refused(_run(server, *command)).endswith(
        "does not answer as softserve does: check the URL"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_admin_key(server: Server, command: list[str]) -> None:
    server.answers = dict.fromkeys(("GET", "PUT", "POST", "DELETE"), (404, NOT_FOUND))
    _run(server, *command, "--admin-key", "naïve")
    _run(server, *command, SOFTSERVE_ADMIN_KEY="secret")
    _run(server, *command)
    keys = [received.headers.get("authorization") for received in server.received]
    # Header bytes are read as Latin-1.
    sent = "Bearer naïve".encode().decode("latin-1")
    assert list(dict.fromkeys(keys)) == [sent, "Bearer secret", None]


def test_an_admin_key_that_no_header_can_hold(server: Server) -> None:
    sentence = _refused(_run(server, "list", "--admin-key", "sec\nret"))
    assert sentence == "the key has a line break or the like in it: remove it"
    assert server.received == []


@pytest.mark.parametrize("name", ["../info", "a/b", "", "my-task@9f86d0"])
@pytest.mark.parametrize("command", COMMANDS[1:], ids=lambda command: command[0])
def test_what_cannot_be_a_name(server: Server, command: list[str], name: str) -> None:
    sentence = _refused(_run(server, command[0], name, *command[2:]))
    assert sentence.startswith("an adapter's name has at most 64 letters")
    assert server.received == []


def test_help() -> None:
    result = _run(None, "--help")
    assert result.exit_code == 0
    assert {"list", "show", "add", "rollback", "remove", "check"} <= set(result.output.split())
