"""Tabs in locust's web interface, and the report to download."""

import json
from typing import Any

from flask import Response, request
from locust.env import Environment

from loadtest.figures.recorder import Figures, Recorder
from loadtest.figures.report import Report
from loadtest.figures.summary import SHOWN_TIMES, Summary

REPORT_PATH = "/generation/report"
# A tab for each: its key, its title, and what stands in its rows.
TABS = (
    ("generation-by-user", "Generation by user", Recorder.by_user),
    ("generation-by-adapter", "Generation by adapter", Recorder.by_adapter),
)
COLUMNS = {
    "name": "",
    "completed": "Completed",
    "failed": "Failed",
    "refused": "429, 503",
    "left": "Left",
    "tokens_per_second": "Tokens/s",
    "goodput": "Goodput/s",
    **{
        f"{name}_p{percent}": f"{shown} p{percent} (ms)"
        for name, shown in SHOWN_TIMES.items()
        for percent in (50, 99)
    },
}


def show_in_web_interface(environment: Environment, recorder: Recorder) -> None:
    """Locust's page draws the tables by itself, and asks for their rows with its own statistics."""
    web_ui, options = environment.web_ui, environment.parsed_options
    if web_ui is None or web_ui.app is None or options is None:
        return
    report_path = f"{options.web_base_path or ''}{REPORT_PATH}"
    structure = [{"key": key, "title": title} for key, title in COLUMNS.items()]
    web_ui.template_args |= {
        "extended_tabs": [{"title": title, "key": key} for key, title, _ in TABS],
        "extended_tables": [{"key": key, "structure": structure} for key, _, _ in TABS],
        "extended_csv_files": [{"href": report_path, "title": "Generation report (HTML)"}],
    }

    @web_ui.app.route(report_path)
    @web_ui.auth_required_if_enabled
    def report() -> str:
        return Report.of(environment, recorder).as_html(recorder)

    @web_ui.app.after_request
    def add_rows(response: Response) -> Response:
        if request.path.endswith("/stats/requests") and response.is_json:
            tables = [
                {"key": key, "data": _rows(recorder, group(recorder))} for key, _, group in TABS
            ]
            response.set_data(json.dumps(response.get_json() | {"extended_stats": tables}))
        return response


def _rows(recorder: Recorder, groups: dict[str, Figures]) -> list[dict[str, Any]]:
    rows = groups | {"all": recorder.total()}
    return [_row(name, Summary.of(figures, recorder.seconds)) for name, figures in rows.items()]


def _row(name: str, summary: Summary) -> dict[str, Any]:
    return {
        "name": name,
        "completed": summary.completed,
        "failed": summary.failed,
        "refused": summary.refused_429 + summary.refused_503,
        "left": summary.left,
        "tokens_per_second": summary.tokens_per_second,
        "goodput": summary.goodput,
        **{
            f"{time}_p{percent}": _whole(getattr(getattr(summary, time), f"p{percent}"))
            for time in SHOWN_TIMES
            for percent in (50, 99)
        },
    }


def _whole(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else round(milliseconds)
