"""Keys for tests: made in a file, as `softserve key create` makes them."""

from pathlib import Path
from typing import Any

from app.access.key_file import KeyFile
from softserve.schema.keys import CreateKey, Role

Headers = dict[str, str]


def opened(path: Path) -> KeyFile:
    file = KeyFile(path)
    file.open(may_be_missing=True)
    return file


def new_key(path: Path, name: str, *roles: Role, **fields: Any) -> Headers:
    """The header of a new key in the file; with no roles said, a user's."""
    asked = CreateKey(name=name, roles=list(roles or ("user",)), **fields)
    _, secret = opened(path).create(asked)
    return bearer(secret)


def bearer(secret: str) -> Headers:
    return {"authorization": f"Bearer {secret}"}
