"""`split`, `promote` and `shadow`, against a server that records what it is sent."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import cli
from tests.unit.cli.recording import Server
from tests.unit.cli.test_adapter_tables import EFFECT, FIRST, SECOND, adapter, version

NAME = "my-task"
TEMPLATE = "input_variables: [text]\nexample_format: '{{ text }}'\nquery_format: '{{ text }}'\n"
FAMILIES = {"adapter": "/adapters", "template": "/icl/templates"}
SPLIT = {"split": {"versions": {FIRST: 90, SECOND: 10}, "sticky": "session"}}
SPLIT_SENTENCE = "my-task is split: 90 % 9f86d081884c (live), 10 % 60303ae22b99; sticky by session."
RESULTS: dict[str, Any] = {
    "completed": 1200,
    "failed": 1,
    "skipped": 30,
    "live_seconds": 600.0,
    "shadow_seconds": 660.0,
    "live_tokens": 36_000,
    "shadow_tokens": 24_000,
    "compared": 1000,
    "equal": 960,
    "agreement": 0.97251,
}
SHADOW = {
    "version": SECOND,
    "percent": 2.5,
    "since": "2026-11-24T09:30:00Z",
    "results": RESULTS,
}
SHADOW_SENTENCE = (
    "60303ae22b99 is a shadow of my-task on 2.5 % of its requests: 1,200 copies completed, 1 "
    "failed, 30 skipped; each took 0.55 s for 20 tokens, and live 0.5 s for 30; of 1,000 greedy "
    "completions 960 have the same text, and they agree to 97.3 %."
)


def answer(family: str, **fields: Any) -> dict[str, Any]:
    """A name with two versions, the older live."""
    answer = adapter(NAME, version(SECOND, live=False), version(FIRST), **fields)
    if family == "template":
        answer |= {"description": "", "num_examples": 0, "template": None}
    return answer


def run(server: Server, *arguments: str | Path) -> Result:
    url = f"http://127.0.0.1:{server.server_port}"
    environment = {"TERM": "dumb", "SOFTSERVE_URL": url}
    return CliRunner().invoke(cli, [*map(str, arguments)], env=environment)


def refusal_of(result: Result) -> str:
    """The one sentence of a command that failed."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_split(server: Server, family: str) -> None:
    server.answers["POST"] = 200, answer(family, **SPLIT)
    result = run(server, family, "split", NAME, "9f86d0=90", "60303a=10", "--sticky", "session")
    assert result.stdout == f"my-task is live: version 9f86d081884c.\n{SPLIT_SENTENCE}\n"
    assert server.calls == [f"POST {FAMILIES[family]}/my-task/split"]
    assert json.loads(server.received[0].body) == {
        "versions": {"9f86d0": 90, "60303a": 10},
        "sticky": "session",
    }


def test_a_split_that_is_not_sticky(server: Server) -> None:
    split = {"versions": {FIRST: 2, SECOND: 1}, "sticky": "none"}
    server.answers["POST"] = 200, answer("adapter", split=split)
    result = run(server, "adapter", "split", NAME, "9f86d0=2", "60303a=1")
    assert result.stdout.splitlines()[1] == (
        "my-task is split: 66.7 % 9f86d081884c (live), 33.3 % 60303ae22b99."
    )
    assert json.loads(server.received[0].body)["sticky"] == "none"


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        (["9f86d0"], "9f86d0 is not VERSION=WEIGHT, as 4d967a30=90: write each version so"),
        (["9f86d0=1.5"], "9f86d0=1.5 is not VERSION=WEIGHT"),
        (["9f86d0=1", "9f86d0=2"], "two of the versions are the same: give each once"),
    ],
)
def test_what_is_no_split(server: Server, versions: list[str], sentence: str) -> None:
    assert sentence in refusal_of(run(server, "adapter", "split", NAME, *versions))
    assert server.calls == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("options", "body"), [([], {}), (["--version", "9f86d0"], {"version": "9f86d0"})]
)
def test_promote(
    server: Server,
    family: str,
    options: list[str],
    body: dict[str, str],
) -> None:
    server.answers["POST"] = 200, answer(family)
    result = run(server, family, "promote", NAME, *options)
    assert result.stdout == "my-task is live: version 9f86d081884c.\n"
    assert server.calls == [f"POST {FAMILIES[family]}/my-task/promote"]
    assert json.loads(server.received[0].body) == body


@pytest.mark.parametrize("family", FAMILIES)
def test_shadow(server: Server, family: str) -> None:
    server.answers["POST"] = 200, answer(family, shadow=SHADOW)
    result = run(server, family, "shadow", NAME, "60303a", "--percent", "2.5")
    assert result.stdout == f"my-task is live: version 9f86d081884c.\n{SHADOW_SENTENCE}\n"
    assert server.calls == [f"POST {FAMILIES[family]}/my-task/shadow"]
    assert json.loads(server.received[0].body) == {"version": "60303a", "percent": 2.5}


def test_a_shadow_without_copies(server: Server) -> None:
    counts = dict.fromkeys(RESULTS, 0) | {"agreement": None}
    server.answers["POST"] = 200, answer("adapter", shadow=SHADOW | {"results": counts})
    result = run(server, "adapter", "shadow", NAME, "60303a")
    assert result.stdout.splitlines()[1] == (
        "60303ae22b99 is a shadow of my-task on 2.5 % of its requests: 0 copies completed, 0 "
        "failed, 0 skipped."
    )
    assert json.loads(server.received[0].body)["percent"] == 10


@pytest.mark.parametrize("family", FAMILIES)
def test_end_a_shadow(server: Server, family: str) -> None:
    server.answers["DELETE"] = 200, answer(family)
    assert run(server, family, "shadow", NAME, "--end").stdout == "my-task has no shadow.\n"
    assert server.calls == [f"DELETE {FAMILIES[family]}/my-task/shadow"]


@pytest.mark.parametrize("arguments", [[], ["60303a", "--end"]])
def test_a_version_or_the_end(server: Server, arguments: list[str]) -> None:
    refusal = refusal_of(run(server, "adapter", "shadow", NAME, *arguments))
    assert refusal == ("softserve: give the version that gets copies of requests, or --end\n")
    assert server.calls == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("action", ["split", "promote", "shadow"])
def test_not_a_name(server: Server, family: str, action: str) -> None:
    arguments = {"split": ["a=1"], "promote": [], "shadow": ["60303a"]}[action]
    assert "name has at most 64" in refusal_of(run(server, family, action, "a/b", *arguments))
    assert server.calls == []


@pytest.mark.parametrize("command", ["list", "show"])
def test_the_tables_of_adapters_say_it(server: Server, command: str) -> None:
    shown = answer("adapter", shadow=SHADOW, **SPLIT)
    server.answers["GET"] = 200, shown if command == "show" else {"adapters": [shown]}
    result = run(server, "adapter", command, *([NAME] if command == "show" else []))
    assert result.stdout.endswith(f"\n\n{SPLIT_SENTENCE}\n\n{SHADOW_SENTENCE}\n")


def test_the_table_of_templates_says_it(server: Server) -> None:
    server.answers["GET"] = 200, {"templates": [answer("template", shadow=SHADOW, **SPLIT)]}
    result = run(server, "template", "list")
    assert result.stdout.endswith(f"\n\n{SPLIT_SENTENCE}\n\n{SHADOW_SENTENCE}\n")


BESIDE = (
    "Version 60303ae22b99 is beside the live one of my-task: `softserve {} split my-task "
    "9f86d081884c=90 60303ae22b99=10` gives it a tenth of the requests.\n"
)


def test_an_adapter_beside_the_live_one(server: Server, folder: Path) -> None:
    shown = answer("adapter")
    server.answers = {"GET": (200, shown), "PUT": (200, shown)}
    result = run(server, "adapter", "add", NAME, folder, "--no-live")
    assert result.stdout == f"{BESIDE.format('adapter')}{EFFECT}\n"
    assert server.calls[1] == "PUT /adapters/my-task?live=false"


def test_a_template_beside_the_live_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(TEMPLATE)
    server.answers["PUT"] = 200, answer("template")
    result = run(server, "template", "add", NAME, tmp_path / "new.yaml", "--no-live")
    assert result.stdout == BESIDE.format("template")
    assert server.calls == ["PUT /icl/templates/my-task?live=false"]


def test_what_is_live_is_not_beside_itself(server: Server, folder: Path) -> None:
    same = adapter(NAME, version(FIRST))
    server.answers = {"GET": (200, same), "PUT": (200, same)}
    result = run(server, "adapter", "add", NAME, folder, "--no-live")
    assert result.stdout.startswith(
        "my-task is live: LoRA, rank 8, version 9f86d081884c, as it was"
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "arguments",
    [
        ["show", NAME],
        ["rollback", NAME],
        ["split", NAME, "9f86d0=90", "60303a=10"],
        ["promote", NAME],
        ["shadow", NAME, "60303a"],
        ["shadow", NAME, "--end"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_json(server: Server, family: str, arguments: list[str]) -> None:
    """What the server answered, for programs."""
    answered = answer(family, **SPLIT)
    server.answers = dict.fromkeys(("GET", "POST", "DELETE"), (200, answered))
    shown = json.loads(run(server, family, *arguments, "--json").stdout)
    assert (shown["name"], shown["live"]) == (NAME, FIRST)
    assert shown["split"] == SPLIT["split"]


def test_json_of_what_is_added(server: Server, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(TEMPLATE)
    for family, source in (("adapter", folder), ("template", tmp_path / "new.yaml")):
        server.answers = dict.fromkeys(("GET", "PUT"), (200, answer(family)))
        assert json.loads(run(server, family, "add", NAME, source, "--json").stdout)["name"] == NAME
