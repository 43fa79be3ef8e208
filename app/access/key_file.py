"""The file of keys: read when it changes, and only ever replaced as a whole.

    {"keys": [{"name": "support-bot", "digest": "9f86…", "roles": ["user"], ...}]}

Several processes may change it: a server over HTTP, and `softserve key` beside it.
"""

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from app.access.keys import Key, Keys, new_key
from app.errors import KeyConflict, KeyNotFound, StartError, StoreUnavailable
from app.versions.disk import replace_file
from softserve.schema.keys import CreateKey

log = structlog.get_logger(__name__)

CHECK_INTERVAL_SECONDS = 1.0
LOCK_TIMEOUT_SECONDS = 10.0

# Tells one state of a file from another.
_Signature = tuple[int, int, int] | None


class _Content(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _are_different(self) -> "_Content":
        for what in ("name", "digest"):
            if len({getattr(key, what) for key in self.keys}) < len(self.keys):
                raise ValueError(f"two keys have the same {what}")
        return self


class KeyFileDamaged(StartError):
    """The file of keys is not what was written; the message says how."""


class KeyFile:
    """The keys of one file. `keys` are those that were read last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = Keys()
        self._signature: _Signature = None
        # Read by whoever watches and by whoever changes: the older must not overwrite the newer.
        self._reading = threading.Lock()

    def open(self, *, may_be_missing: bool) -> None:
        """Read it for the first time.

        Raises:
            StartError: it is damaged or cannot be read, or it is not there.
        """
        try:
            self._read()
        except FileNotFoundError:
            if not may_be_missing:
                raise StartError(
                    f"there is no file of keys {self.path}: make one with "
                    f"`softserve key create NAME --role admin --keys-file {self.path}`"
                ) from None
        except OSError as error:
            raise StartError(
                f"the file of keys {self.path} cannot be read ({error.strerror}): check its "
                "permissions, or name another with --keys-file"
            ) from None

    async def watch(self) -> None:
        """Read it again whenever it has changed. What cannot be used is logged, and not used."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
            try:
                if await asyncio.to_thread(self._read_if_changed):
                    log.info("the file of keys was read again", num_keys=len(self.keys.all))
            except (OSError, KeyFileDamaged) as error:
                why = error.message if isinstance(error, KeyFileDamaged) else error.strerror
                log.error("the file of keys cannot be used: the keys stay as they are", why=why)  # noqa: TRY400

    def create(self, asked: CreateKey) -> tuple[Key, str]:
        """Add a key; it and its secret.

        Raises:
            KeyConflict: there is one of that name.
            OSError: the file cannot be written.
        """

        def add(keys: tuple[Key, ...]) -> tuple[Key, ...]:
            if any(key.name == asked.name for key in keys):
                raise KeyConflict(
                    f"there is a key {asked.name} already: revoke it first, or choose another name",
                    param="name",
                )
            return (*keys, made)

        made, secret = new_key(asked)
        self._change(add)
        return made, secret

    def revoke(self, name: str, *, keep_an_admin: bool) -> None:
        """Remove a key.

        Raises:
            KeyNotFound: there is none of that name.
            KeyConflict: it is the last of an admin, and one is to be kept.
            OSError: the file cannot be written.
        """

        def remove(keys: tuple[Key, ...]) -> tuple[Key, ...]:
            left = tuple(key for key in keys if key.name != name)
            if len(left) == len(keys):
                raise KeyNotFound(f"no key is called {name[:64]!r}", param="name")
            if keep_an_admin and _has_admin(keys) and not _has_admin(left):
                raise KeyConflict(
                    f"{name} is the last key with the role admin, and nobody could make another: "
                    "make that first, or revoke this one with --keys-file on the server's machine"
                )
            return left

        self._change(remove)

    def _change(self, change: Callable[[tuple[Key, ...]], tuple[Key, ...]]) -> None:
        try:
            # Beside the file: that itself is replaced.
            with FileLock(f"{self.path}.lock", timeout=LOCK_TIMEOUT_SECONDS):
                with suppress(FileNotFoundError):
                    self._read()
                keys = sorted(change(self.keys.all), key=lambda key: key.name)
                replace_file(self.path, _Content(keys=tuple(keys)).model_dump_json(indent=2))
                self._read()
        except KeyFileDamaged as error:
            raise KeyConflict(error.message) from None
        except Timeout:
            raise StoreUnavailable(
                f"another process is changing {self.path}: try again in a moment"
            ) from None

    def _read_if_changed(self) -> bool:
        if _signature_of(self.path.stat()) == self._signature:
            return False
        self._read()
        return True

    def _read(self) -> None:
        with self._reading:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileDamaged(f"{self.path} is not a file: check --keys-file")
            # First: what is damaged is told once, not every second.
            self._signature = _signature_of(status)
            self.keys = self._parsed(self.path.read_bytes())

    def _parsed(self, content: bytes) -> Keys:
        try:
            return Keys(_Content.model_validate_json(content).keys)
        except ValidationError as error:
            # What the file holds is not shown: it may be another file, with other secrets.
            raise KeyFileDamaged(
                f"{self.path} is not a file of keys, or damaged ({_why(error)}): restore it, or "
                "name another with --keys-file"
            ) from None


def _why(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    if first["type"] == "json_invalid":
        return "it is not JSON"
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _has_admin(keys: tuple[Key, ...]) -> bool:
    return any("admin" in key.roles and key.is_valid() for key in keys)


def _signature_of(status: os.stat_result) -> _Signature:
    return status.st_ino, status.st_mtime_ns, status.st_size
