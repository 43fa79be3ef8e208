"""What `softserve adapter check` prints for a person."""

import typer

from app.cli.adapter_tables import kind_of
from app.cli.console import fail
from softserve.schema.checks import AgainstPeft, CheckedAdapter, CheckReport, ComparedPrompt

WHAT = {"refused": "refused", "unchecked": "it could not be checked"}


def print_report(report: CheckReport) -> None:
    """The report on stdout; the sentence of a refusal, or of a failure, on stderr."""
    if report.adapter is None:
        fail(f"{WHAT[report.verdict]}: {report.message}", report.exit_code)
        return
    typer.echo("\n".join(_adapter(report, report.adapter)))
    if report.against_peft is not None:
        typer.echo("\n".join(_comparison(report.against_peft)))


def _adapter(report: CheckReport, adapter: CheckedAdapter) -> list[str]:
    modules = f" on {', '.join(adapter.target_modules)}" if adapter.target_modules else ""
    unknown = [] if report.message is None else [report.message]
    return [
        f"{kind_of(adapter)}{modules}",
        f"version: {adapter.version}",
        f"base model: {adapter.base_model or 'not declared'}",
        *(f"note: {note}" for note in adapter.notes),
        *unknown,
        f"A server of {report.model} with these settings would take it.",
    ]


def _comparison(compared: AgainstPeft) -> list[str]:
    verdict = "it gives what PEFT gives" if compared.equal else "it differs from PEFT"
    warning = [] if compared.warning is None else [f"warning: {compared.warning}"]
    return [
        f"In {compared.dtype}, {verdict}:",
        *(f"  {_prompt(each)}" for each in compared.prompts),
        *warning,
    ]


def _prompt(compared: ComparedPrompt) -> str:
    differ = f"log probabilities differ by up to {_number(compared.largest_difference)}"
    changed = f"the adapter changes them by up to {_number(compared.largest_change)}"
    task = "" if compared.task is None else f", task {compared.task}"
    token = _changed_token(compared)
    return f"{compared.prompt!r}{task}: {_tokens(compared)}; {differ}; {changed}, {token}"


def _tokens(compared: ComparedPrompt) -> str:
    divergence = compared.divergence
    if divergence is None:
        return f"{len(compared.token_ids)} tokens alike"
    return (
        f"token {divergence.position + 1} is {divergence.token!r}, and in PEFT "
        f"{divergence.peft_token!r}, which it finds likelier by {_number(divergence.margin)}"
    )


def _changed_token(compared: ComparedPrompt) -> str:
    if compared.changed_at is None:
        return "and no token"
    return f"and token {compared.changed_at + 1} first"


def _number(difference: float | None) -> str:
    return "no number" if difference is None else f"{difference:.2g}"
