"""`softserve adapter check`: what a server would say of an adapter, without one.

The report goes to stdout, alone: what libraries and the engine's processes write goes to stderr.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console

from app.cli.adapter_check_report import print_report
from app.cli.adapters import Force, Task
from app.cli.console import missing_package
from app.cli.options import flag, with_options
from app.errors import AdapterRejected, SoftserveError
from app.settings import Settings
from app.telemetry.logs import configure_logging
from softserve.schema.checks import CheckReport

log = structlog.get_logger(__name__)

# Those that decide which adapters a server takes.
DECIDING = (
    "model",
    "served_model_name",
    "precision",
    "max_lora_rank",
    "max_loras",
    "max_virtual_tokens",
    "max_adapter_bytes",
    "cache_dir",
    "engine_arg",
)
TOLERANCE = 0.01
UNEXPECTED = "it failed for a reason that no check here knows: it is on stderr"

cli = typer.Typer(add_completion=False)


@cli.command()
@with_options({name: Settings.model_fields[name] for name in DECIDING})
def check(
    folder: Annotated[
        Path,
        typer.Argument(exists=True, help="A PEFT folder, or a .tar.gz, .tgz, .tar or .zip of one."),
    ],
    force: Force = False,
    task: Task = None,
    against_peft: Annotated[
        bool,
        typer.Option(
            "--against-peft",
            help="Generate on the engine too, and compare with transformers and PEFT; in fp32 "
            "unless --precision says otherwise.",
        ),
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="For --against-peft, in place of its own; may be repeated."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="For --against-peft: differences of log probabilities up to it are rounding.",
            show_default=str(TOLERANCE),
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **given: Any,
) -> None:
    settings = _settings(given)
    for name, value in {"--prompt": prompt, "--tolerance": tolerance}.items():
        if value is not None and not against_peft:
            raise typer.BadParameter("it is for --against-peft: add that", param_hint=name)
    if prompt is not None and not all(prompt):
        raise typer.BadParameter("a prompt is empty", param_hint="--prompt")
    # A terminated run leaves as an interrupted one does, and takes its files and processes along.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_logging("text", "warning")
    with _stdout_to_stderr(), Console(stderr=True).status("the adapter is checked"):
        report = _checked(
            folder,
            settings,
            force=force,
            task=task,
            against_peft=against_peft,
            prompts=prompt,
            tolerance=TOLERANCE if tolerance is None else tolerance,
        )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_report(report)
    raise typer.Exit(report.exit_code)


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(first["msg"], param_hint=flag(str(first["loc"][0]))) from None


def _checked(
    folder: Path,
    settings: Settings,
    *,
    force: bool,
    task: int | None,
    against_peft: bool,
    prompts: Sequence[str] | None,
    tolerance: float,
) -> CheckReport:
    """The outcome, whatever it is: no failure may look like a refusal, which has exit code 1."""
    try:
        # PyTorch's and vLLM's imports take seconds, which a wrong option has not to wait for.
        from app.checking.check import check_adapter

        return check_adapter(
            folder,
            settings,
            force=force,
            task=task,
            against_peft=against_peft,
            prompts=prompts,
            tolerance=tolerance,
        )
    except AdapterRejected as error:
        return CheckReport(verdict="refused", message=error.message)
    except SoftserveError as error:
        return CheckReport(verdict="unchecked", message=error.message)
    except ModuleNotFoundError as error:
        return CheckReport(verdict="unchecked", message=missing_package(error))
    except Exception as error:
        log.exception("the check failed", exc_info=error)
        return CheckReport(verdict="unchecked", message=UNEXPECTED)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Also what is written below Python, and by other processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
