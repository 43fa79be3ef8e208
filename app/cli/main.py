"""The command line: `softserve serve`, and commands that talk to a running server.

A command's module is imported when the command runs: `softserve --help` waits for none of them, and
those that talk to a server do not need what the server needs.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli.console import fail, missing_package
from app.cli.late import LateCommand

COMMANDS = [
    LateCommand(
        "serve",
        "app.cli.serve",
        "Start the server. It answers /health/live at once and /health/ready when the model is "
        "loaded.\n\n"
        "Every option is also read from the environment: --port from SOFTSERVE_PORT, and so on.",
    ),
    LateCommand(
        "generate",
        "app.cli.generate",
        "Complete a prompt, or standard input, on a running server.",
    ),
    LateCommand("chat", "app.cli.chat", "Talk with the model of a running server."),
    LateCommand(
        "evaluate",
        "app.cli.evaluate",
        "Compare ways of prompting: shots, templates, adapters, any control.",
    ),
    LateCommand(
        "quantize",
        "app.cli.quantize",
        "Write a checkpoint with INT8 weights (W8A8, compressed-tensors) for --model of serve.",
    ),
    LateCommand(
        "inspect",
        "app.cli.inspection",
        "Show what the sampling controls do to a prompt's next token, on a running server.",
    ),
    LateCommand("top", "app.cli.top", "Show what a running server does, now."),
    LateCommand(
        "adapter",
        "app.cli.adapters",
        "Show and change the adapters of a running server, or check one without.",
    ),
    LateCommand(
        "key",
        "app.cli.keys",
        "Make, list and revoke keys, in a file or on a running server; show what was used.",
    ),
    LateCommand(
        "template", "app.cli.templates", "Show and change the prompt templates of a running server."
    ),
]


class Commands(TyperGroup):
    """The commands. One that misses a package says what to install."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"commands": COMMANDS})

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise fail(missing_package(error)) from error


cli = typer.Typer(
    name="softserve",
    cls=Commands,
    help="An LLM inference server: one base model on vLLM, many tasks on top of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from softserve import __version__

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


if __name__ == "__main__":
    cli()
