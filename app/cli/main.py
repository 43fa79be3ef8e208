"""The command line: `softserve serve`, and commands that talk to a running server."""

import signal
import sys
from inspect import Parameter, Signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app.cli.adapters import adapters
from app.cli.console import DEFAULT_URL, Url, fail, telling_failures
from app.cli.evaluate import evaluate
from app.cli.inspection_tables import print_distribution
from app.cli.templates import templates
from app.errors import QuantizationFailed, StartError
from app.settings import Settings
from app.telemetry.logs import configure_logging
from softserve import __version__
from softserve.client import Client
from softserve.schema.inspection import InspectAnswer
from softserve.schema.server import Limits

cli = typer.Typer(
    name="softserve",
    help="An LLM inference server: one base model on vLLM, many tasks on top of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli.add_typer(adapters)
cli.add_typer(templates)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"softserve {__version__}")
        raise typer.Exit


@cli.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def serve(**given: Any) -> None:
    """Start the server. It answers /health/live at once and /health/ready when the model is loaded.

    Every option is also read from the environment: --port from SOFTSERVE_PORT, and so on.
    """
    try:
        settings = Settings(**_without_missing(given))
    except ValidationError as error:
        reasons = [f"{_flag(str(e['loc'][0]))}: {e['msg']}" for e in error.errors()]
        raise fail("; ".join(reasons)) from None
    configure_logging(settings.log_format, settings.log_level)
    # vLLM's and the server's imports take seconds, which no other command has to wait for.
    from app.server import serve as run_server

    try:
        exit_code = run_server(settings)
    except StartError as error:
        raise fail(error.message) from None
    raise typer.Exit(exit_code)


def _without_missing(given: dict[str, Any]) -> dict[str, Any]:
    """Typer hands over None, or an empty list, for an option that was not given."""
    return {name: value for name, value in given.items() if value not in (None, [])}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _option(name: str, field: FieldInfo) -> Parameter:
    """A setting as an option of the command; None stands for not given."""
    default = field.get_default(call_default_factory=True)
    kind = _plain_type(field.annotation)
    option = typer.Option(
        _flag(name), help=field.description, show_default=str(default) if default else False
    )
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _plain_type(annotation: Any) -> Any:
    """`int` for `PositiveInt | None`, `list[str]` for `tuple[str, ...]`: what typer can parse."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        (annotation,) = (argument for argument in arguments if argument is not NoneType)
        return _plain_type(annotation)
    if origin is Annotated:
        return _plain_type(arguments[0])
    return list[str] if origin is tuple else annotation


serve.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        _option(name, field)
        for name, field in sorted(
            Settings.model_fields.items(), key=lambda item: item[0] in Limits.model_fields
        )
    ]
)
cli.command()(serve)
cli.command()(evaluate)


@cli.command()
def quantize(
    out: Annotated[Path, typer.Option(help="The new folder to write.")],
    model: Annotated[
        str | None,
        typer.Argument(help="A Hugging Face folder or hub id; without it, SmolLM2-135M-Instruct."),
    ] = None,
) -> None:
    """Write a checkpoint with INT8 weights (W8A8, compressed-tensors) for --model of serve."""
    # A terminated run leaves as an interrupted one does, and takes what it has written along.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # PyTorch's import takes seconds, which no other command has to wait for.
    from app.quantization.checkpoint import quantize_checkpoint, quantize_progress

    try:
        quantize_checkpoint(model, out, quantize_progress())
    except (StartError, QuantizationFailed) as error:
        raise fail(error.message) from None
    typer.echo(f"{out}: serve it with softserve serve --model {out}")


@cli.command()
def inspect(
    prompt: Annotated[str, typer.Argument(help="The text whose next token is inspected.")],
    temperature: Annotated[float | None, typer.Option(help="0 is greedy, up to 2.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the nucleus of this mass.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens at least this fraction as likely as the best.")
    ] = None,
    num_tokens: Annotated[int, typer.Option(help="How many tokens to show.")] = 10,
    use_chat_template: Annotated[
        bool, typer.Option("--use-chat-template", help="Wrap the prompt as a user message.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what the sampling controls do to a prompt's next token, on a running server."""
    controls = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "system": system,
    }
    body = {name: value for name, value in controls.items() if value is not None} | {
        "prompt": prompt,
        "num_tokens": num_tokens,
        "use_chat_template": use_chat_template,
    }
    with telling_failures():
        answer = Client(url).post("/inspect", body, InspectAnswer)
    print_distribution(answer)


if __name__ == "__main__":
    sys.exit(cli())
