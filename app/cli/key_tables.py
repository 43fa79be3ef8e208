"""What `softserve key list` and `softserve key usage` print."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from app.cli.console import stdout
from softserve.schema.keys import KeyFields, KeyOut, UsageReport

TIME = "%Y-%m-%d %H:%M"
LIMITS = (
    "max_requests_in_flight",
    "prompt_tokens_per_minute",
    "completion_tokens_per_minute",
    "weight",
    "max_priority",
)


def print_keys(keys: Sequence[KeyOut]) -> None:
    """A row a key."""
    table = _table("name", "roles", "adapters", "templates", "limits", "made", "ends")
    for key in keys:
        table.add_row(
            key.name,
            ", ".join(key.roles),
            _names(key.adapters),
            _names(key.templates),
            _limits(key),
            f"{key.created_at:{TIME}}",
            "never" if key.expires_at is None else f"{key.expires_at:{TIME}}",
        )
    stdout().print(table)


def print_usage(report: UsageReport) -> None:
    """A row for what was used with a key of an adapter and a soft prompt."""
    numbers = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    table = _table("key", "adapter", "soft prompt", *(each.replace("_", " ") for each in numbers))
    for row in report.usage:
        counted = [f"{getattr(row, each):,}" for each in numbers]
        table.add_row(row.key, row.adapter or "", row.soft_prompt or "", *counted)
    console = stdout()
    console.print(f"since {report.since:{TIME}}")
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for name in columns:
        table.add_column(name)
    return table


def _names(patterns: Sequence[str] | None) -> str:
    return "all" if patterns is None else ", ".join(patterns) or "none"


def _limits(key: KeyOut) -> str:
    """Those that were set, by their names."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,}"
        for name in LIMITS
        if (value := getattr(key, name)) != KeyFields.model_fields[name].default
    )
