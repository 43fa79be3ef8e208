"""`softserve chat`: a conversation, of which each turn is one request with all turns before it.

What is said goes to standard output, everything else to standard error. Ctrl-C ends an answer,
Ctrl-D the chat.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from app.cli.completions import print_summary
from app.cli.connection import DEFAULT_URL, Key, Url, connected
from app.cli.options import value_of, with_options
from softserve.client import Client, ClientError, CompletionEnd
from softserve.schema.generation import GenerateBody
from softserve.schema.prompts import PROMPT_FIELDS

# The prompt is the conversation, and the answer is one text.
OWN = (
    *PROMPT_FIELDS,
    *("use_chat_template", "system", "decoder_prompt"),
    *("stream", "n", "logprobs", "return_token_ids"),
)
CONTROLS = {name: field for name, field in GenerateBody.model_fields.items() if name not in OWN}

cli = typer.Typer(add_completion=False)


@cli.command()
@with_options(CONTROLS)
def chat(
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    **given: Any,
) -> None:
    with connected(url, key) as client:
        conversation = Chat(client, given, system)
        for line in _lines():
            conversation.hear(line)


class Chat:
    """The turns so far, and the controls of the next one."""

    def __init__(self, client: Client, controls: dict[str, Any], system: str | None = None) -> None:
        self._client = client
        self._controls = controls
        self._system = system
        # The user's and the assistant's, in turns.
        self._turns: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/adapter": lambda name: self._set("adapter", name),
            "/soft-prompt": lambda name: self._set("soft_prompt", name),
            "/system": self._set_system,
            "/set": lambda words: self._set(*_two_words(words)),
            "/undo": self._undo,
            "/history": self._show_turns,
            "/help": self._help,
        }

    def hear(self, line: str) -> None:
        """A turn of the user, or a command."""
        if not line.startswith("/"):
            self._answer(line)
            return
        name, _, argument = line.partition(" ")
        self._commands.get(name, self._help)(argument.strip())

    def _answer(self, line: str) -> None:
        """Show the answer as it comes. What came of one that was ended counts as said."""
        said = [*self._turns, _message("user", line)]
        system = [] if self._system is None else [_message("system", self._system)]
        text = ""
        try:
            with self._client.stream(messages=[*system, *said], **self._controls) as events:
                for event in events:
                    text += event.text
                    typer.echo(event.text, nl=False)
                    if isinstance(event, CompletionEnd):
                        typer.echo()
                        print_summary(event)
        except KeyboardInterrupt:
            typer.echo()
            _note("[the answer was ended]")
        except ClientError as error:
            _note(f"softserve: {error}")
        if text:
            self._turns = [*said, _message("assistant", text)]

    def _set(self, name: str, text: str) -> None:
        """A control of the answers from here on; without a value, its default."""
        if name not in CONTROLS:
            _note(f"there is no control {name}: choose from {', '.join(CONTROLS)}")
        elif not text:
            self._controls.pop(name, None)
            _note(f"{name} is the default")
        else:
            try:
                self._controls[name] = value_of(CONTROLS[name], text)
            except ValueError as error:
                _note(f"{name} {error}")
            else:
                _note(f"{name} is {text}")

    def _set_system(self, text: str) -> None:
        self._system = text or None

    def _undo(self, _: str) -> None:
        """Take the last turn back, with its answer."""
        if not self._turns:
            _note("there is nothing to undo")
            return
        *self._turns, asked, _answered = self._turns
        _note(f"undone: {asked['content']}")

    def _show_turns(self, _: str) -> None:
        for turn in self._turns:
            typer.echo(f"{turn['role']}: {turn['content']}")

    def _help(self, _: str) -> None:
        _note(
            "/adapter NAME, /soft-prompt NAME: who answers; without a name, the base model\n"
            "/set NAME VALUE: a control, as in /set temperature 0.7; without a value, its default\n"
            "/system TEXT: the system message; without a text, none\n"
            "/undo: take the last turn back    /history: show all turns\n"
            "Ctrl-C ends an answer, Ctrl-D the chat."
        )


def _lines() -> Iterator[str]:
    """What the user says, until it ends; a terminal lets it be edited and called up again."""
    lines = _typed() if sys.stdin.isatty() else sys.stdin
    return (line for each in lines if (line := each.strip()))


def _typed() -> Iterable[str]:
    # It makes `input` an editor; not every Python has it.
    with suppress(ImportError):
        import readline  # noqa: F401
    _note("Ctrl-C ends an answer, Ctrl-D the chat; /help shows the commands.")
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            typer.echo()
        except EOFError:
            typer.echo()
            return


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _two_words(words: str) -> tuple[str, str]:
    name, _, value = words.partition(" ")
    return name.replace("-", "_"), value.strip()


def _note(text: str) -> None:
    typer.echo(text, err=True)
