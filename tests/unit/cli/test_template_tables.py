"""What `softserve template list` prints, and `--watch` on a list."""

import signal
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from app.cli.template_tables import templates_view
from softserve.schema.templates import TemplateSummary
from tests.threaded import in_thread
from tests.unit.cli.recording import Server
from tests.unit.cli.terminal import TIMEOUT_SECONDS, Terminal
from tests.unit.cli.test_adapter_tables import FIRST, adapter, version
from tests.unit.cli.test_adapters import _run

LONG = "Says what a review is about, in one of five words, " * 4


def template(name: str, *, live: bool = True, **fields: Any) -> TemplateSummary:
    entry = {"version": FIRST, "live": live, "created_at": "2026-11-24T09:30:00Z", "source": "x"}
    return TemplateSummary(
        **{
            "name": name,
            "live": FIRST if live else None,
            "rejected": None,
            "description": "",
            "num_examples": 6,
            "versions": [entry],
            **fields,
        }
    )


def shown(*templates: TemplateSummary, width: int = 80, with_retired: bool = False) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(templates_view(templates, console, with_retired=with_retired))
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_list() -> None:
    rejected = template("broken", live=False, rejected="it is not YAML: correct it", versions=[])
    assert shown(template("review-topic", description=LONG), rejected) == [
        "name         live         versions examples description",
        "─" * 80,
        "review-topic 9f86d081884c        1        6 Says what a review is about, in one…",
        "broken       not served          0        6",
        "",
        "broken is rejected: it is not YAML: correct it",
    ]


def test_200_templates_at_80_columns() -> None:
    live = [template(f"template-{i:03}", description=LONG) for i in range(150)]
    retired = [template(f"retired-{i:02}", live=False) for i in range(50)]
    lines = shown(*live, *retired)
    assert len(lines) == 2 + 150 + 2
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("50 retired: retired-00, retired-01")
    assert len(shown(*live, *retired, with_retired=True)) == 2 + 200


def test_in_a_pipe_nothing_is_cut_off() -> None:
    assert shown(template("review-topic", description=LONG), width=1000)[2].endswith(LONG.strip())


def test_no_templates() -> None:
    assert shown()[0].startswith("There are no templates: add one with `softserve template add")


def test_a_list_is_watched(terminal: Callable[..., Terminal]) -> None:
    with in_thread(Server()) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        server.answers["GET"] = 200, {"adapters": [adapter("first-name", version(FIRST))]}
        started = terminal("adapter", "list", "--watch", "--url", url)
        started.read_until("first-name")
        server.answers["GET"] = 200, {"adapters": [adapter("second-name", version(FIRST))]}
        started.read_until("second-name")
        started.process.send_signal(signal.SIGINT)
        assert started.process.wait(TIMEOUT_SECONDS) == 0


def test_there_is_nothing_to_watch_in_a_pipe(server: Server) -> None:
    result = _run(server, "list", "--watch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--watch draws on a terminal" in result.stderr


@pytest.mark.parametrize("command", ["list", "show"])
def test_json(server: Server, command: str) -> None:
    one = adapter("x", version(FIRST))
    server.answers["GET"] = 200, one if command == "show" else {"adapters": [one]}
    result = _run(server, command, *(["x"] if command == "show" else []), "--json")
    assert FIRST in result.stdout
