"""`softserve adapter`: show and change the adapters of a running server.

What lies on this machine is uploaded; any other source is the server's to find. `check` alone asks
no server: app/cli/adapter_check.py.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.status import Status
from typer.core import TyperGroup

from app.cli.adapter_tables import adapters_view, facts_of, kind_of, print_adapter, shown_version
from app.cli.canary import Live, WaitAll, add_commands, beside, reached, wait_for
from app.cli.connection import DEFAULT_URL, Json, Key, Url, Version, connected, print_json
from app.cli.console import fail, missing_package, stdout
from app.cli.late import LateCommand
from app.cli.name_tables import All
from app.cli.watching import Watch, show_list
from softserve.client import Client, NotFound
from softserve.schema.adapters import AdapterOut
from softserve.schema.checks import EXIT_CODES
from softserve.schema.versions import short

Name = Annotated[str, typer.Argument(help="The adapter's name.")]
# Of what is added, or checked as if it were.
Force = Annotated[
    bool, typer.Option("--force", help="Take an adapter that declares another base model.")
]
Task = Annotated[
    int | None, typer.Option(min=0, help="Of a multitask soft prompt: take this task alone.")
]

CHECK = LateCommand(
    "check",
    "app.cli.adapter_check",
    "Check an adapter as a server would, without one.\n\n"
    "Exit codes: 0 it would be taken, and is equal with --against-peft; 1 it would be refused; "
    "2 the command line is wrong; 3 it is not what PEFT gives; 4 it could not be checked.",
)


class Commands(TyperGroup):
    """The commands, and the one among them that needs the server's packages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_command(CHECK)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise fail(missing_package(error), EXIT_CODES["unchecked"]) from error


cli = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False)


@cli.command("list")
def list_adapters(
    with_retired: All = False,
    watched: Watch = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List the adapters."""
    console = stdout()
    with connected(url, key) as client:
        show_list(
            client.adapters.list,
            lambda answer: adapters_view(answer.adapters, console, with_retired=with_retired),
            console,
            watched=watched,
            as_json=as_json,
        )


@cli.command()
def show(name: Name, as_json: Json = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show one adapter and its versions, newest first."""
    with connected(url, key) as client:
        answer = client.adapters.show(name)
    if as_json:
        print_json(answer)
    else:
        print_adapter(answer)


@cli.command()
def add(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            help="A PEFT folder or a .tar.gz, .tgz, .tar or .zip of one, which is uploaded; else "
            "a folder on the server or a hub id."
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(help="Of a hub id: a branch, a tag or a commit.")
    ] = None,
    force: Force = False,
    task: Task = None,
    live: Live = True,
    wait_all: WaitAll = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Add an adapter, or a new version of one: it is checked, loaded, and then live."""
    here = Path(source).expanduser()
    wait = wait_for(wait_all)
    options: dict[str, Any] = {"force": force, "task": task, "live": live, "wait": wait}
    with connected(url, key) as client:
        if not _exists(here):
            before = _find(client, name)
            with _status("the server fetches, checks and loads it"):
                after = client.adapters.add(name, source, revision=revision, **options)
        elif revision is None:
            before = _find(client, name)
            after = _upload(client, name, here, **options)
        else:
            raise fail(
                f"{source} is on this machine and only a hub id has revisions: leave --revision out"
            )
    if as_json:
        print_json(after)
        return
    new = after.versions[0]
    if not live and new.version != after.live:
        told = [beside("adapter", after, new.version), *facts_of(new)]
    else:
        told = [_added(before, after), *facts_of(shown_version(after))]
    typer.echo("\n".join([*told, *reached(after)]))


@cli.command()
def rollback(
    name: Name,
    version: Version = None,
    wait_all: WaitAll = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Make an older version live again."""
    with connected(url, key) as client:
        before = _find(client, name)
        with _status("the server loads it"):
            after = client.adapters.rollback(name, version, wait=wait_for(wait_all))
    if as_json:
        print_json(after)
        return
    facts = facts_of(shown_version(after))
    typer.echo("\n".join([_rolled_back(before, after), *facts, *reached(after)]))


@cli.command()
def remove(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Remove an adapter with its versions, once the requests that use it have ended."""
    with (
        connected(url, key) as client,
        _status("waiting for the requests that use it to end"),
    ):
        client.adapters.remove(name)
    typer.echo(f"{name} is removed.")


add_commands(cli, lambda client: client.adapters)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise fail(f"{path} cannot be read ({error.strerror}): check the path") from None


def _find(client: Client, name: str) -> AdapterOut | None:
    """What the server has by that name now."""
    try:
        return client.adapters.show(name)
    except NotFound:
        return None


def _upload(client: Client, name: str, source: Path, **options: Any) -> AdapterOut:
    """Send the files with a progress bar, then show that the server works on them."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        # In a pipe it would be a line in the log, at the end.
        disable=not console.is_terminal,
    )
    checking = console.status("the server checks and loads it")
    task = progress.add_task(source.name, total=None)

    def show(num_sent: int, num_all: int) -> None:
        progress.update(task, completed=num_sent, total=num_all)
        if num_sent == num_all:
            progress.stop()
            checking.start()

    with ExitStack() as stack:
        stack.callback(checking.stop)
        stack.enter_context(progress)
        return client.adapters.upload(name, source, on_progress=show, **options)


def _status(doing: str) -> Status:
    return Console(stderr=True).status(doing)


def _added(before: AdapterOut | None, after: AdapterOut) -> str:
    replaced = None if before is None else before.live
    if replaced is not None and replaced == after.live:
        return f"{_described(after)}, as it was: it has the same files."
    if replaced is None:
        return f"{_described(after)}."
    return (
        f"{_described(after)}.\n"
        f"It replaced version {short(replaced)}: `softserve adapter rollback {after.name}` goes "
        "back to that."
    )


def _rolled_back(before: AdapterOut | None, after: AdapterOut) -> str:
    replaced = None if before is None else before.live
    if replaced is None:
        return f"{_described(after)}."
    if replaced == after.live:
        return f"{_described(after)}, as it was."
    return f"{_described(after)}, in place of version {short(replaced)}."


def _described(adapter: AdapterOut) -> str:
    version = shown_version(adapter)
    assert version is not None, "what was just made live has a version"
    return f"{adapter.name} is live: {kind_of(version)}, version {short(version.version)}"
