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

from app.cli.adapter_tables import facts_of, kind_of, print_adapter, print_adapters, shown_version
from app.cli.canary import Live, add_commands, beside
from app.cli.connection import DEFAULT_URL, Family, Key, Url, Version, connected
from app.cli.console import fail, missing_package
from app.cli.late import LateCommand
from softserve.client import PATIENT, Call, Client, ClientError, upload
from softserve.schema.adapters import ADAPTER_FILES, AdapterList, AdapterOut
from softserve.schema.checks import EXIT_CODES
from softserve.schema.versions import short

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
ADAPTERS = Family("an adapter", "/adapters", AdapterOut)

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
def list_adapters(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the adapters."""
    with connected(url, key) as client:
        answer = client.send(Call("GET", ADAPTERS.path, AdapterList))
    print_adapters(answer.adapters)


@cli.command()
def show(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show one adapter and its versions, newest first."""
    with connected(url, key) as client:
        answer = client.send(ADAPTERS.show(name))
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
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Add an adapter, or a new version of one: it is checked, loaded, and then live."""
    path, files = ADAPTERS.path_of(name) + ("" if live else "?live=false"), _files_here(source)
    if files and revision is not None:
        raise fail(
            f"{source} is on this machine and only a hub id has revisions: leave --revision out"
        )
    with connected(url, key) as client:
        before = _find(client, name)
        if files:
            after = _upload(client, path, files, force=force, task=task)
        else:
            after = _name_source(client, path, source, revision, force=force, task=task)
    new = after.versions[0]
    if not live and new.version != after.live:
        typer.echo("\n".join([beside("adapter", after, new.version), *facts_of(new)]))
        return
    typer.echo("\n".join([_added(before, after), *facts_of(shown_version(after))]))


@cli.command()
def rollback(name: Name, version: Version = None, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Make an older version live again."""
    with connected(url, key) as client:
        before = _find(client, name)
        with _status("the server loads it"):
            after = client.send(ADAPTERS.rollback(name, version))
    typer.echo("\n".join([_rolled_back(before, after), *facts_of(shown_version(after))]))


@cli.command()
def remove(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Remove an adapter with its versions, once the requests that use it have ended."""
    call = ADAPTERS.remove(name)
    with (
        connected(url, key) as client,
        _status("waiting for the requests that use it to end"),
    ):
        client.send(call)
    typer.echo(f"{name} is removed.")


add_commands(cli, ADAPTERS)


def _files_here(source: str) -> list[Path]:
    """The files to upload, none if there is no such source on this machine."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _files_in(path)
        if not path.exists():
            return []
    except OSError as error:
        raise _unreadable(path, error) from None
    if not path.name.lower().endswith(ARCHIVES):
        raise fail(
            f"{path} is neither a folder nor a .tar.gz, .tgz, .tar or .zip: give the folder that "
            "PEFT's save_pretrained wrote, or an archive of it"
        )
    return [path]


def _files_in(folder: Path) -> list[Path]:
    if not (missing := _missing(folder)):
        return [folder / name for name in ADAPTER_FILES]
    # Where nothing is on top, as PEFT saves a named adapter.
    below = [] if len(missing) < len(ADAPTER_FILES) else _folders_with_both_files(folder)
    if len(below) == 1:
        return [below[0] / name for name in ADAPTER_FILES]
    advice = "give the folder that PEFT's save_pretrained wrote, with safe_serialization=True"
    if below:
        advice = f"give one of {', '.join(map(str, below))}"
    raise fail(f"{folder} has no {' and no '.join(missing)}: {advice}")


def _missing(folder: Path) -> list[str]:
    return [name for name in ADAPTER_FILES if not (folder / name).is_file()]


def _folders_with_both_files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not _missing(each))


def _unreadable(path: Path | str, error: OSError) -> typer.Exit:
    return fail(f"{path} cannot be read ({error.strerror}): check the path")


def _find(client: Client, name: str) -> AdapterOut | None:
    """What the server has by that name now."""
    try:
        return client.send(ADAPTERS.show(name))
    except ClientError as error:
        if error.type == "adapter_not_found":
            return None
        raise


def _upload(
    client: Client, path: str, files: list[Path], *, force: bool, task: int | None
) -> AdapterOut:
    """Send the files with a progress bar each, then show that the server works on them."""
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

    def on_sent() -> None:
        progress.stop()
        checking.start()

    try:
        with ExitStack() as stack:
            stack.callback(checking.stop)
            stack.enter_context(progress)
            opened = {
                file.name: stack.enter_context(progress.open(file, "rb", description=file.name))
                for file in files
            }
            fields = {"force": "true"} if force else {}
            if task is not None:
                fields["task"] = str(task)
            return client.send(upload(path, opened, fields, AdapterOut, on_sent))
    except OSError as error:
        raise _unreadable(error.filename or files[0], error) from None


def _name_source(
    client: Client,
    path: str,
    source: str,
    revision: str | None,
    *,
    force: bool,
    task: int | None,
) -> AdapterOut:
    body: dict[str, Any] = {"source": source}
    if revision is not None:
        body["revision"] = revision
    if force:
        body["force"] = True
    if task is not None:
        body["task"] = task
    with _status("the server fetches, checks and loads it"):
        return client.send(Call("PUT", path, AdapterOut, body, PATIENT))


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
