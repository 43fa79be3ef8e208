"""The check of one adapter, from its files to the report."""

from collections.abc import Sequence
from pathlib import Path

from app.checking.admission import admitted
from app.checking.against_peft import PROMPTS, compare_with_peft
from app.settings import Settings
from softserve.schema.checks import CheckedAdapter, CheckReport


def check_adapter(
    source: Path,
    settings: Settings,
    *,
    force: bool = False,
    task: int | None = None,
    against_peft: bool = False,
    prompts: Sequence[str] | None = None,
    tolerance: float = 0.0,
) -> CheckReport:
    """Check a folder or an archive, and compare it with PEFT if that is wanted. It blocks.

    Log probabilities that differ by `tolerance` are equal.

    Raises:
        AdapterRejected: a server with these settings would refuse it.
        SoftserveError: it cannot be told.
    """
    with admitted(source, settings, force=force, task=task) as adapter:
        version = adapter.version
        report = CheckReport(
            verdict="taken",
            message=None if adapter.model.unknown is None else f"unknown: {adapter.model.unknown}",
            model=adapter.model.name,
            adapter=CheckedAdapter(version=version.digest, kind=version.kind, **version.facts),
        )
        if against_peft:
            compared = compare_with_peft(adapter, settings, prompts or PROMPTS, tolerance)
            report.against_peft = compared
            report.verdict = "taken" if compared.equal else "differs"
        return report
