"""What `softserve adapter list` and `softserve adapter show` print."""

import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from app.cli.adapter_tables import adapters_view, print_adapter
from app.cli.console import PIPE_WIDTH, stdout
from softserve.schema.adapters import AdapterOut

FIRST, SECOND = "9f86d081884c7d65" * 4, "60303ae22b998861" * 4
LORA = {"base_model": "echo", "rank": 8, "target_modules": ["q_proj", "v_proj"]}


def version(digest: str, **fields: Any) -> dict[str, Any]:
    """A version of a LoRA, unless `fields` say otherwise."""
    return {
        "version": digest,
        "live": True,
        "loaded": True,
        "created_at": "2026-11-24T09:30:00Z",
        "source": "upload",
        "size_bytes": 1_846_240,
        "virtual_tokens": None,
        "effect": {"kl_divergence": 0.17251, "changed": True},
        "requests": 17,
        **LORA,
        **fields,
    }


def adapter(name: str, *versions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An adapter as the server answers."""
    return {
        "name": name,
        "kind": "lora",
        "live": next((each["version"] for each in versions if each["live"]), None),
        "rejected": None,
        "requests": sum(each["requests"] for each in versions),
        "versions": list(versions),
        **fields,
    }


SOFT_PROMPT: dict[str, Any] = {
    "rank": None,
    "target_modules": [],
    "base_model": None,
    "virtual_tokens": 20,
    "size_bytes": 46_168,
}
WITHOUT_EFFECT: dict[str, Any] = {
    "effect": {"kl_divergence": 0.0, "changed": False},
    "warning": "it changes nothing: check it",
}
EFFECT = "effect: a KL divergence of 0.173 nats on the probe prompt"
ADAPTERS = [
    adapter("legal-summary", kind=None, rejected="its rank is 64 and the limit is 32: lower it"),
    adapter("support-intent-lora", version(SECOND), version(FIRST, live=False, loaded=False)),
    adapter("support-intent-prompt", version(FIRST, **SOFT_PROMPT, loaded=False, requests=1234)),
]


def _list(*adapters: dict[str, Any], width: int, with_retired: bool = False) -> list[str]:
    console = Console(file=StringIO(), width=width)
    listed = [AdapterOut.model_validate(each) for each in adapters]
    console.print(adapters_view(listed, console, with_retired=with_retired))
    return _lines(console)


def _show(shown: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width)
    print_adapter(AdapterOut.model_validate(shown), console)
    return _lines(console)


def _lines(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def _an_hour_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown in the local time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EAST-1")
        time.tzset()
        yield
    time.tzset()


WIDE = f"""\
name                  kind                 KL live         versions    size loaded requests
{"─" * 91}
legal-summary                                 not served          0                       0
support-intent-lora   LoRA, rank 8      0.173 60303ae22b99        2  1.8 MB   ✓          34
support-intent-prompt prompt, 20 tokens 0.173 9f86d081884c        1 46.2 kB   ·       1,234

legal-summary is rejected: its rank is 64 and the limit is 32: lower it
"""


def test_a_list() -> None:
    assert _list(*ADAPTERS, width=91) == WIDE.splitlines()


def test_a_list_at_80_columns() -> None:
    """What is least needed has no room, and an adapter is one line."""
    assert _list(*ADAPTERS, width=80) == [
        "name                  kind              live         versions loaded requests",
        "─" * 77,
        "legal-summary                           not served          0               0",
        "support-intent-lora   LoRA, rank 8      60303ae22b99        2   ✓          34",
        "support-intent-prompt prompt, 20 tokens 9f86d081884c        1   ·       1,234",
        "",
        "legal-summary is rejected: its rank is 64 and the limit is 32: lower it",
    ]


def test_a_list_on_a_narrow_terminal() -> None:
    """Names break, and nothing is cut off."""
    assert _list(*ADAPTERS[1:], width=39) == [
        "name              live         requests",
        "─" * 39,
        "support-intent-lo 60303ae22b99       34",
        "ra",
        "support-intent-pr 9f86d081884c    1,234",
        "ompt",
    ]


def test_200_adapters_at_80_columns() -> None:
    """A line each, one for all that are retired, and none is too long."""
    live = [adapter(f"support-intent-{i:03}", version(FIRST)) for i in range(150)]
    retired = [adapter(f"retired-{i:02}", version(FIRST, live=False)) for i in range(50)]
    lines = _list(*live, *retired, width=80)
    assert len(lines) == 2 + 150 + 2
    assert max(map(len, lines)) <= 80
    assert lines[-1] == ("50 retired: retired-00, retired-01 and 48 more (--all shows a row each)")
    everything = _list(*live, *retired, width=80, with_retired=True)
    assert len(everything) == 2 + 200
    assert sum(line.startswith("retired-") for line in everything) == 50


def test_the_longest_name_at_80_columns() -> None:
    lines = _list(adapter("n" * 64, version(FIRST)), width=80)
    assert "".join(line.split()[0] for line in lines[2:4]) == "n" * 64
    assert all(len(line) <= 80 for line in lines)


def test_a_list_in_a_pipe_has_a_line_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    console = stdout()
    assert console.width == PIPE_WIDTH
    console.print(adapters_view([AdapterOut.model_validate(each) for each in ADAPTERS], console))
    assert capsys.readouterr().out == WIDE


def test_no_adapters() -> None:
    assert _list(width=80) == [
        "There are no adapters: add one with `softserve adapter add NAME SOURCE`, or put",
        "its folder into the server's --adapter-dir.",
    ]


def test_the_versions_of_an_adapter() -> None:
    older = version(FIRST, live=False, loaded=False, requests=0, source="my-team/task@0f3b")
    assert _show(adapter("my-task", version(SECOND), older), 81) == [
        "my-task: LoRA, rank 8 on q_proj, v_proj",
        "base model: echo",
        EFFECT,
        "",
        "version      live loaded created            size    KL requests source",
        "─" * 81,
        "60303ae22b99  ✓     ✓    2026-11-24 10:30 1.8 MB 0.173       17 upload",
        "9f86d081884c  ·     ·    2026-11-24 10:30 1.8 MB 0.173        0 my-team/task@0f3b",
    ]


def test_a_soft_prompt() -> None:
    shown = _show(adapter("my-task", version(FIRST, **SOFT_PROMPT)))
    assert shown[:2] == [
        "my-task: soft prompt, 20 virtual tokens",
        "base model: not declared",
    ]


def test_a_long_source_breaks() -> None:
    source = f"my-team/my-task-lora@{'0f3b' * 10}"
    lines = _show(adapter("my-task", version(FIRST, source=source)), 80)
    assert all(len(line) <= 80 for line in lines)
    assert "".join(line.split()[-1] for line in lines[6:]) == source


def test_what_is_shown_is_of_the_live_version() -> None:
    newest = version(SECOND, live=False, rank=16)
    assert _show(adapter("my-task", newest, version(FIRST)))[0].startswith("my-task: LoRA, rank 8")
    retired = adapter("my-task", newest, version(FIRST, live=False))
    assert _show(retired)[0].startswith("my-task: LoRA, rank 16")


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (
            adapter("my-task", rejected="its folder has no adapter_config.json: copy it there"),
            "my-task is rejected: its folder has no adapter_config.json: copy it there",
        ),
        (
            adapter("my-task", version(FIRST), rejected="its rank is 64: lower it"),
            "my-task is rejected (9f86d081884c is served): its rank is 64: lower it",
        ),
        (
            adapter("my-task", version(FIRST, live=False)),
            (
                "my-task is not served: its folder is gone; put it back, or use `softserve "
                "adapter rollback my-task`"
            ),
        ),
    ],
)
def test_why_something_is_not_served(shown: dict[str, Any], sentence: str) -> None:
    assert _show(shown, 200)[-1] == sentence


def test_a_reason_of_several_is_told_once() -> None:
    gone = [adapter(name, version(FIRST, live=False)) for name in ("a", "b", "c")]
    large = [adapter(name, rejected="its rank is 64: lower it") for name in ("d", "e")]
    assert _list(*gone, *large, width=200)[-3:] == [
        "3 retired: a, b, c (--all shows a row each)",
        "",
        "d and e are rejected: its rank is 64: lower it",
    ]


def test_one_virtual_token() -> None:
    shown = _show(adapter("my-task", version(FIRST, **SOFT_PROMPT | {"virtual_tokens": 1})))
    assert shown[0] == "my-task: soft prompt, 1 virtual token"


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"tasks": 8}, "soft prompt, 20 virtual tokens, tasks #0 to #7"),
        ({"tasks": 1}, "soft prompt, 20 virtual tokens, task #0"),
        ({"task": 3}, "soft prompt, 20 virtual tokens, made of task 3"),
    ],
)
def test_tasks(fields: dict[str, int], shown: str) -> None:
    lines = _show(adapter("my-task", version(FIRST, **SOFT_PROMPT | fields)))
    assert lines[0] == f"my-task: {shown}"


def test_what_came_with_an_adapter_steers_no_terminal() -> None:
    evil = version(FIRST, base_model="\x1b[2J[bold]echo", source="[/]\x1b]0;x\x07")
    shown = "\n".join(_show(adapter("my-task", evil, rejected="[red]\x1b[31m")))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "base model: �[2J[bold]echo" in shown
    assert "[red]�[31m" in shown


def test_what_is_noted_of_a_version() -> None:
    shown = _show(adapter("noted", version(FIRST, notes=["'lm_head' is a copy: it is left out"])))

    assert shown[2:4] == [EFFECT, "note: 'lm_head' is a copy: it is left out"]


def test_what_has_no_effect() -> None:
    versions = version(SECOND, **WITHOUT_EFFECT), version(FIRST, live=False)
    shown = _show(adapter("idle", *versions))

    assert shown[2] == "warning: it changes nothing: check it"
    assert [line.split()[7] for line in shown[6:]] == ["0", "0.173"]


def test_warnings_of_several_are_told_once() -> None:
    names = ("a", "b", "c")
    idle = [adapter(name, version(FIRST, **WITHOUT_EFFECT)) for name in names]

    assert _list(*idle, adapter("d", version(SECOND)), width=200)[-2:] == [
        "",
        "warning of a, b and c: it changes nothing: check it",
    ]


def test_what_was_not_measured() -> None:
    shown = adapter("old", version(FIRST, effect=None))

    assert _show(shown)[2] == "effect: not measured; add it again to have it measured"
    assert _list(shown, width=200)[2].split()[:4] == ["old", "LoRA,", "rank", "8"]
