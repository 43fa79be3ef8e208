"""`softserve quantize`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import fail
from app.errors import QuantizationFailed, StartError

cli = typer.Typer(add_completion=False)


@cli.command()
def quantize(
    out: Annotated[Path, typer.Option(help="The new folder to write.")],
    model: Annotated[
        str | None,
        typer.Argument(help="A Hugging Face folder or hub id; without it, SmolLM2-135M-Instruct."),
    ] = None,
) -> None:
    # A terminated run leaves as an interrupted one does, and takes what it has written along.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # PyTorch's import takes seconds, which the help has not to wait for.
    from app.quantization.checkpoint import quantize_checkpoint, quantize_progress

    try:
        quantize_checkpoint(model, out, quantize_progress())
    except (StartError, QuantizationFailed) as error:
        raise fail(error.message) from None
    typer.echo(f"{out}: serve it with softserve serve --model {out}")
