"""`softserve adapter`: show and change the adapters of a running server.

What lies on this machine is uploaded; any other source is the server's to find.
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

from app.cli.adapter_tables import kind_of, print_adapter, print_adapters, short, shown_version
from app.cli.console import DEFAULT_URL, AdminKey, Url, telling_failures
from softserve.client import PATIENT, Client, ClientError
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterList, AdapterOut
from softserve.schema.fields import name_refusal

FILES = (CONFIG_FILE, WEIGHTS_FILE)
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")

Name = Annotated[str, typer.Argument(help="The adapter's name.")]

adapters = typer.Typer(
    name="adapter",
    help="Show and change the adapters of a running server.",
    no_args_is_help=True,
)


@adapters.command("list")
def list_adapters(url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """List the adapters."""
    with telling_failures():
        answer = Client(url, admin_key).get("/adapters", AdapterList)
    print_adapters(answer.adapters)


@adapters.command()
def show(name: Name, url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """Show one adapter and its versions, newest first."""
    with telling_failures():
        answer = Client(url, admin_key).get(_path(name), AdapterOut)
    print_adapter(answer)


@adapters.command()
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
    force: Annotated[
        bool, typer.Option("--force", help="Take an adapter that declares another base model.")
    ] = False,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Add an adapter, or a new version of one: it is checked, loaded, and then live."""
    with telling_failures():
        path, files = _path(name), _files_here(source)
        if files and revision is not None:
            raise ClientError(
                f"{source} is on this machine and only a hub id has revisions: leave --revision out"
            )
        client = Client(url, admin_key)
        before = _find(client, path)
        if files:
            after = _upload(client, path, files, force=force)
        else:
            after = _name_source(client, path, source, revision, force=force)
    typer.echo(_added(before, after))


@adapters.command()
def rollback(
    name: Name,
    version: Annotated[
        str | None,
        typer.Option(
            help="The version to go to, by at least six of its first digits; without it, the one "
            "before the live one."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Make an older version live again."""
    with telling_failures():
        path, client = _path(name), Client(url, admin_key)
        before = _find(client, path)
        body = {} if version is None else {"version": version}
        with _status("the server loads it"):
            after = client.post(f"{path}/rollback", body, AdapterOut, PATIENT)
    typer.echo(_rolled_back(before, after))


@adapters.command()
def remove(name: Name, url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """Remove an adapter with its versions, once the requests that use it have ended."""
    with telling_failures(), _status("waiting for the requests that use it to end"):
        Client(url, admin_key).delete(_path(name))
    typer.echo(f"{name} is removed.")


def _path(name: str) -> str:
    if refusal := name_refusal("an adapter", name):
        raise ClientError(refusal)
    return f"/adapters/{name}"


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
        raise ClientError(
            f"{path} is neither a folder nor a .tar.gz, .tgz, .tar or .zip: give the folder that "
            "PEFT's save_pretrained wrote, or an archive of it"
        )
    return [path]


def _files_in(folder: Path) -> list[Path]:
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ClientError(
            f"{folder} has no {' and no '.join(missing)}: give the folder that PEFT's "
            "save_pretrained wrote, with safe_serialization=True"
        )
    return [folder / name for name in FILES]


def _unreadable(path: Path | str, error: OSError) -> ClientError:
    return ClientError(f"{path} cannot be read ({error.strerror}): check the path")


def _find(client: Client, path: str) -> AdapterOut | None:
    """What the server has by that name now."""
    try:
        return client.get(path, AdapterOut)
    except ClientError as error:
        if error.type == "adapter_not_found":
            return None
        raise


def _upload(client: Client, path: str, files: list[Path], *, force: bool) -> AdapterOut:
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
            return client.upload(path, opened, fields, AdapterOut, on_sent)
    except OSError as error:
        raise _unreadable(error.filename or files[0], error) from None


def _name_source(
    client: Client, path: str, source: str, revision: str | None, *, force: bool
) -> AdapterOut:
    body: dict[str, Any] = {"source": source}
    if revision is not None:
        body["revision"] = revision
    if force:
        body["force"] = True
    with _status("the server fetches, checks and loads it"):
        return client.put(path, body, AdapterOut)


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
