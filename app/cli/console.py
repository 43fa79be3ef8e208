"""What the commands write to the terminal alike."""

import typer
from rich.console import Console

PIPE_WIDTH = 1000


def fail(sentence: str, exit_code: int = 1) -> typer.Exit:
    """Tell the sentence; raise what this returns to end the command."""
    typer.echo(f"softserve: {sentence}", err=True)
    return typer.Exit(exit_code)


def missing_package(error: ModuleNotFoundError) -> str:
    return (
        f"this command needs the server's packages and {error.name} is not there: "
        "pip install 'softserve[cpu]' or 'softserve[cuda]'"
    )


def stdout(pipe_width: int = PIPE_WIDTH) -> Console:
    """Standard output. A table fits a terminal's width; in a pipe, each of its rows is one line."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = pipe_width
    return console
