"""`softserve key`: make, list and revoke keys.

With --keys-file they are those of a file on this machine, and no server is needed; one that runs
with it follows within a second or two. Else they are a running server's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from app.cli.connection import DEFAULT_URL, Json, Key, Url, connected, print_json
from app.cli.console import fail
from app.cli.key_tables import print_keys, print_usage
from app.cli.options import flag, with_options
from app.errors import SoftserveError
from softserve.schema.fields import name_refusal
from softserve.schema.keys import CreateKey, KeyCreated, KeyList

if TYPE_CHECKING:
    from app.access.key_file import KeyFile

# A list is told item by item, in the singular.
REPEATED = {"roles": "--role", "adapters": "--adapter", "templates": "--template"}
REST = {name: field for name, field in CreateKey.model_fields.items() if name not in REPEATED}

Name = Annotated[str, typer.Argument(help="The key's name.")]
KeysFile = Annotated[
    Path | None,
    typer.Option(
        help="The file of keys, on this machine; without it, a running server is asked.",
        envvar="SOFTSERVE_KEYS_FILE",
    ),
]

cli = typer.Typer(no_args_is_help=True, add_completion=False)


def _repeated(field: str, example: str) -> Any:
    described = CreateKey.model_fields[field].description
    return typer.Option(REPEATED[field], help=f"{described} May be repeated.", metavar=example)


@cli.command()
@with_options(REST)
def create(
    role: Annotated[list[str] | None, _repeated("roles", "user|operator|admin")] = None,
    adapter: Annotated[list[str] | None, _repeated("adapters", "PATTERN")] = None,
    template: Annotated[list[str] | None, _repeated("templates", "PATTERN")] = None,
    keys_file: KeysFile = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    **given: Any,
) -> None:
    """Make a key, and write its secret to standard output: it is shown this once."""
    lists = {"roles": role, "adapters": adapter, "templates": template}
    asked = _checked(given | {name: each for name, each in lists.items() if each})
    if keys_file is not None:
        with _opened(keys_file, may_be_missing=True) as file:
            made, secret = file.create(asked)
        created = KeyCreated(**made.out.model_dump(), secret=secret)
    else:
        with connected(url, key) as client:
            created = client.keys.create(**asked.model_dump(mode="json", exclude_unset=True))
    typer.echo(f"{created.name} is a key now. Keep its secret: nobody can show it again.", err=True)
    if as_json:
        print_json(created)
    else:
        typer.echo(created.secret)


@cli.command("list")
def list_keys(
    keys_file: KeysFile = None, as_json: Json = False, url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """List the keys, without their secrets."""
    if keys_file is not None:
        with _opened(keys_file) as file:
            listed = KeyList(keys=[each.out for each in file.keys.all])
    else:
        with connected(url, key) as client:
            listed = client.keys.list()
    if as_json:
        print_json(listed)
    else:
        print_keys(listed.keys)


@cli.command()
def revoke(name: Name, keys_file: KeysFile = None, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Revoke a key: a server refuses it from the next request on."""
    if refusal := name_refusal("a key", name):
        raise fail(refusal)
    if keys_file is not None:
        with _opened(keys_file) as file:
            # Who can write the file can always make another admin.
            file.revoke(name, keep_an_admin=False)
    else:
        with connected(url, key) as client:
            client.keys.revoke(name)
    typer.echo(f"{name} is revoked.")


@cli.command()
def usage(as_json: Json = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show what a running server has counted by key and adapter."""
    with connected(url, key) as client:
        report = client.usage()
    if as_json:
        print_json(report)
    else:
        print_usage(report)


def _checked(given: dict[str, Any]) -> CreateKey:
    try:
        return CreateKey(**given)
    except ValidationError as error:
        reasons = [f"{_flag_of(str(e['loc'][0]))}: {e['msg']}" for e in error.errors()]
        raise fail("; ".join(reasons)) from None


def _flag_of(field: str) -> str:
    return "NAME" if field == "name" else REPEATED.get(field) or flag(field)


@contextmanager
def _opened(path: Path, *, may_be_missing: bool = False) -> "Iterator[KeyFile]":
    # Imported late: where only the client is installed, what it needs is not there.
    from app.access.key_file import KeyFile

    file = KeyFile(path.expanduser())
    try:
        file.open(may_be_missing=may_be_missing)
        yield file
    except SoftserveError as error:
        raise fail(error.message) from None
    except OSError as error:
        raise fail(
            f"{path} cannot be written ({error.strerror}): check the folder and its permissions"
        ) from None
