"""Commands whose modules are imported when they run."""

from importlib import import_module
from typing import Any

from typer.core import TyperCommand
from typer.main import get_command


class LateCommand(TyperCommand):
    """A command of which only the sentence is known before it runs."""

    def __init__(self, name: str, module: str, help: str) -> None:
        super().__init__(name, help=help)
        self.module = module

    def make_context(self, *arguments: Any, **extra: Any) -> Any:
        command = get_command(import_module(self.module).cli)
        command.help = self.help
        return command.make_context(*arguments, **extra)
