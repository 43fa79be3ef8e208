"""`softserve serve`. Its options are made from `Settings`."""

from typing import Any

import typer
from pydantic import ValidationError

from app.cli.console import fail
from app.cli.options import flag, with_options
from app.errors import StartError
from app.settings import Settings
from app.telemetry.logs import configure_logging, relay_stderr
from softserve.schema.server import Limits

cli = typer.Typer(add_completion=False)
LIMITS_LAST = sorted(
    Settings.model_fields.items(), key=lambda setting: setting[0] in Limits.model_fields
)


@cli.command()
@with_options(dict(LIMITS_LAST))
def serve(**given: Any) -> None:
    try:
        settings = Settings(**given)
    except ValidationError as error:
        reasons = [f"{flag(str(e['loc'][0]))}: {e['msg']}" for e in error.errors()]
        raise fail("; ".join(reasons)) from None
    configure_logging(settings.log_format, settings.log_level)
    relay_stderr()
    # vLLM's and the server's imports take seconds, which a wrong option has not to wait for.
    from app.server import serve as run_server

    try:
        exit_code = run_server(settings)
    except StartError as error:
        raise fail(error.message) from None
    raise typer.Exit(exit_code)
