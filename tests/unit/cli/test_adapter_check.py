"""`softserve adapter check`: what it prints, and its exit codes."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.checking import check as check_module
from app.cli.adapter_check import DECIDING
from app.cli.main import cli
from app.errors import AdapterRejected, EngineDied, ModelNotLoadable, ReferenceFailed
from app.settings import Settings
from softserve.schema.checks import (
    AgainstPeft,
    CheckedAdapter,
    CheckReport,
    ComparedPrompt,
    Divergence,
)

DIGEST = "4d967a30" * 8
ADAPTER = CheckedAdapter(
    version=DIGEST,
    kind="lora",
    size_bytes=1000,
    base_model="team/tiny",
    rank=8,
    target_modules=["q_proj", "v_proj"],
    virtual_tokens=None,
    notes=["alpha is 8"],
)
TAKEN = CheckReport(verdict="taken", model="tiny", adapter=ADAPTER)
PROMPT = ComparedPrompt(
    prompt="Once",
    prompt_token_ids=[1],
    completion=" upon a",
    token_ids=[2, 3],
    logprobs=[-0.1, -0.2],
    divergence=None,
    largest_difference=0.00001,
    changed_at=0,
    largest_change=3.5,
)
PARTED = PROMPT.model_copy(
    update={
        "divergence": Divergence.model_validate(
            {"position": 1, "token": " a", "peft_token": " the", "margin": 0.41}
        ),
        "largest_difference": None,
        "changed_at": None,
    }
)


def _compared(prompt: ComparedPrompt, *, equal: bool, warning: str | None = None) -> CheckReport:
    compared = AgainstPeft(
        equal=equal, tolerance=0.01, dtype="float32", warning=warning, prompts=[prompt]
    )
    verdict = "taken" if equal else "differs"
    return TAKEN.model_copy(update={"verdict": verdict, "against_peft": compared})


Outcome = CheckReport | Exception


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Outcome], dict[str, Any]]:
    """Say what the check comes to; what it was asked is in the answer, once it has run."""

    def say(outcome: Outcome) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def check_adapter(source: Path, settings: Settings, **given: Any) -> CheckReport:
            asked.update(given, source=source, settings=settings)
            os.write(1, b"noise below Python\n")
            print("noise")  # noqa: T201
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(check_module, "check_adapter", check_adapter)
        return asked

    return say


def _run(*arguments: str) -> Result:
    variables = {"COLUMNS": "200", "TERM": "dumb"}
    return CliRunner().invoke(cli, ["adapter", "check", *arguments], env=variables)


def test_an_adapter_that_would_be_taken(checked: Any, tmp_path: Path) -> None:
    checked(TAKEN)

    result = _run(str(tmp_path))

    assert result.exit_code == 0
    assert result.stdout.endswith(
        "LoRA, rank 8 on q_proj, v_proj\n"
        f"version: {DIGEST}\n"
        "base model: team/tiny\n"
        "note: alpha is 8\n"
        "A server of tiny with these settings would take it.\n"
    )


def test_what_is_asked(checked: Any, tmp_path: Path) -> None:
    asked = checked(TAKEN)

    _run(str(tmp_path), "--max-lora-rank", "64", "--model", "m", "--force", "--task", "1")

    assert asked["source"] == tmp_path
    assert (asked["settings"].max_lora_rank, asked["settings"].model) == (64, "m")
    assert (asked["force"], asked["task"], asked["against_peft"]) == (True, 1, False)
    assert asked["settings"].max_virtual_tokens == Settings().max_virtual_tokens


def test_what_is_asked_of_peft(checked: Any, tmp_path: Path) -> None:
    asked = checked(TAKEN)

    _run(str(tmp_path), "--against-peft")
    assert (asked["against_peft"], asked["prompts"], asked["tolerance"]) == (True, None, 0.01)

    _run(str(tmp_path), "--against-peft", "--prompt", "a", "--prompt", "b", "--tolerance", "0")
    assert (asked["prompts"], asked["tolerance"]) == (["a", "b"], 0.0)


@pytest.mark.parametrize(
    ("outcome", "exit_code", "verdict"),
    [
        (TAKEN, 0, "taken"),
        (_compared(PROMPT, equal=True), 0, "taken"),
        (AdapterRejected("lower it"), 1, "refused"),
        (_compared(PARTED, equal=False), 3, "differs"),
        (ModelNotLoadable("fetch it"), 4, "unchecked"),
        (EngineDied("again"), 4, "unchecked"),
        (ReferenceFailed("see above"), 4, "unchecked"),
        (ModuleNotFoundError("no vllm", name="vllm"), 4, "unchecked"),
        (RuntimeError("a secret"), 4, "unchecked"),
    ],
    ids=lambda each: str(getattr(each, "verdict", type(each).__name__)),
)
def test_exit_codes_and_json(
    checked: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    outcome: Outcome,
    exit_code: int,
    verdict: str,
) -> None:
    checked(outcome)

    result = _run(str(tmp_path), "--json")

    assert result.exit_code == exit_code
    report = CheckReport.model_validate_json(result.stdout.removeprefix("noise\n"))
    assert report.verdict == verdict
    if isinstance(outcome, CheckReport):
        assert report == outcome
    else:
        assert report.message
        assert "secret" not in report.message
    out, err = capfd.readouterr()
    assert "noise below Python" in err
    assert "noise below Python" not in out


def test_a_refusal_is_its_sentence(checked: Any, tmp_path: Path) -> None:
    checked(AdapterRejected("the rank is 64: lower it"))

    result = _run(str(tmp_path))

    assert result.exit_code == 1
    assert result.stderr.endswith("softserve: refused: the rank is 64: lower it\n")


def test_a_difference_is_told(checked: Any, tmp_path: Path) -> None:
    checked(_compared(PARTED, equal=False))

    result = _run(str(tmp_path), "--against-peft")

    assert "In float32, it differs from PEFT:" in result.stdout
    assert (
        "'Once': token 2 is ' a', and in PEFT ' the', which it finds likelier by 0.41; log "
        "probabilities differ by up to no number; the adapter changes them by up to 3.5, and no "
        "token\n"
    ) in result.stdout


def test_no_effect_is_told(checked: Any, tmp_path: Path) -> None:
    checked(_compared(PROMPT, equal=True, warning="it changes nothing"))

    assert "\nwarning: it changes nothing\n" in _run(str(tmp_path), "--against-peft").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-folder"],
        [],
        [".", "--max-lora-rank", "many"],
        [".", "--max-lora-rank", "0"],
        [".", "--precision", "int4"],
        [".", "--prompt", "a"],
        [".", "--tolerance", "0.1"],
        [".", "--against-peft", "--prompt", ""],
        [".", "--against-peft", "--tolerance", "-1"],
    ],
)
def test_a_wrong_command_line(checked: Any, arguments: list[str]) -> None:
    asked = checked(TAKEN)

    result = _run(*arguments)

    assert (result.exit_code, result.stdout, asked) == (2, "", {})


def test_help_says_the_exit_codes_and_the_servers_own_settings() -> None:
    words = " ".join(re.sub(r"[│\s]+", " ", _run("--help").output).split())

    for sentence in ("0 it would be taken", "1 it would be refused", "3 it is not what PEFT gives"):
        assert sentence in words
    for name in DECIDING:
        description = Settings.model_fields[name].description
        assert description is not None
        assert description in words


def test_the_schema_describes_every_field() -> None:
    schema = json.dumps(CheckReport.model_json_schema())
    for model in (CheckReport, AgainstPeft, ComparedPrompt, Divergence, CheckedAdapter):
        for name, field in model.model_fields.items():
            assert field.description, name
    assert "largest_difference" in schema
