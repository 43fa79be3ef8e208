"""The command line: `softserve serve`, and commands that talk to a running server.

A command's module is imported when the command runs: `softserve --help` waits for none of them, and
those that talk to a server do not need what the server needs.
"""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from app.cli.console import fail


class LateCommand(TyperCommand):
    """A command of which only the sentence is known before it runs."""

    def __init__(self, name: str, module: str, help: str) -> None:
        super().__init__(name, help=help)
        self.module = module

    def make_context(self, *arguments: Any, **extra: Any) -> Any:
        command = get_command(import_module(self.module).cli)
        command.help = self.help
        return command.make_context(*arguments, **extra)


COMMANDS = [
    LateCommand(
        "serve",
        "app.cli.serve",
        "Start the server. It answers /health/live at once and /health/ready when the model is "
        "loaded.\n\n"
        "Every option is also read from the environment: --port from SOFTSERVE_PORT, and so on.",
    ),
    LateCommand(
        "evaluate",
        "app.cli.evaluate",
        "Compare ways of prompting: shots, templates, adapters, temperatures.",
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
    LateCommand("adapter", "app.cli.adapters", "Show and change the adapters of a running server."),
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
            raise fail(
                f"this command needs the server's packages and {error.name} is not there: "
                "pip install 'softserve[cpu]' or 'softserve[cuda]'"
            ) from error


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
