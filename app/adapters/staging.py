"""Put an adapter that somebody sends into a staging folder: its two files, and nothing else.

What is sent is not trusted: the two files are written under names of our own, up to a limit.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from app.adapters.archive import (
    HOW_TO_SEND,
    MAX_CONFIG_BYTES,
    Member,
    archive_members,
    chunks_of,
    looks_packed,
    shown,
)
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE

MAX_MEMBERS = 1000
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """One file of an upload, by the name that the client gave it. `file` can seek."""

    name: str
    file: BinaryIO


def stage_files(files: Iterable[UploadedFile], into: Path, max_bytes: int) -> None:
    """Write the two files of an upload, or of the one archive in it, to the empty folder `into`.

    The caller removes `into` if this raises.

    Raises:
        AdapterRejected: it is not one adapter, or not safe to unpack.
        AdapterTooLarge: the weights are above `max_bytes`, the configuration above 1 MiB, or an
            archive unpacks to more than both.
    """
    staging = _Staging(into, max_bytes)
    for member in _members(list(files), max_bytes):
        staging.add(member)
    staging.finish()


def stage_folder(source: Path, into: Path, max_bytes: int) -> None:
    """Copy the two files of a folder, whose path the caller has resolved, to the folder `into`.

    Raises:
        AdapterRejected: they are missing, empty, unreadable or not regular files.
        AdapterTooLarge: the weights are above `max_bytes`, or the configuration above 1 MiB.
    """
    staging = _Staging(into, max_bytes)
    try:
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise AdapterRejected("there is no such folder, or the server may not read it") from error
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            if name in ADAPTER_FILES or _is_pickle(name):
                staging.add(Member(name, _regular_file(folder, name)))
    finally:
        os.close(folder)
    staging.finish()


class _Staging:
    """Takes members in any order, and writes the two that it wants."""

    def __init__(self, into: Path, max_bytes: int) -> None:
        self._into = into
        self._max_bytes = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: max_bytes}
        self._num_members = 0
        self._seen: set[PurePosixPath] = set()
        self._staged: set[str] = set()
        self._folder: PurePosixPath | None = None
        self._pickle: str | None = None

    def add(self, member: Member) -> None:
        self._num_members += 1
        if self._num_members > MAX_MEMBERS:
            raise AdapterRejected(f"there are more than {MAX_MEMBERS:,} files: {HOW_TO_SEND}")
        path = _relative_path(member.name)
        if member.name.endswith("/"):
            return
        if path in self._seen:
            raise AdapterRejected(f"{shown(member.name)} is there twice: send one of the two")
        self._seen.add(path)
        if _is_pickle(path.name):
            self._pickle = path.name
        elif path.name in ADAPTER_FILES:
            self._claim_folder(path)
            self._write(path.name, member.chunks)

    def finish(self) -> None:
        missing = [file for file in ADAPTER_FILES if file not in self._staged]
        if WEIGHTS_FILE in missing and self._pickle is not None:
            raise AdapterRejected(
                f"{shown(self._pickle)} was not read, because a pickle can run any code: save the "
                f"adapter with safe_serialization=True and send {WEIGHTS_FILE}"
            )
        if missing:
            are = "is" if len(missing) == 1 else "are"
            raise AdapterRejected(f"{' and '.join(missing)} {are} missing: {HOW_TO_SEND}")

    def _claim_folder(self, path: PurePosixPath) -> None:
        """The two files lie in one folder, which is the top one or right below it."""
        if len(path.parts) > 2:
            raise AdapterRejected(
                f"{shown(str(path))} lies too deep: pack the folder of {path.name} itself"
            )
        if self._folder not in (None, path.parent):
            raise AdapterRejected(
                f"adapter files lie in {shown(str(self._folder))} and in "
                f"{shown(str(path.parent))}: send the folder of one adapter"
            )
        self._folder = path.parent

    def _write(self, file: str, chunks: Iterator[bytes]) -> None:
        num_bytes, max_bytes = 0, self._max_bytes[file]
        with (self._into / file).open("xb") as target:
            for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise AdapterTooLarge(f"{file} is above the limit of {_limit(file, max_bytes)}")
                target.write(chunk)
        if num_bytes == 0:
            raise AdapterRejected(f"{file} is empty: send it again")
        self._staged.add(file)


def _limit(file: str, max_bytes: int) -> str:
    if file == CONFIG_FILE:
        return f"{max_bytes:,} bytes: send the file that PEFT's save_pretrained writes"
    return f"{max_bytes:,} bytes: lower the rank, or start the server with more --max-adapter-bytes"


def _relative_path(name: str) -> PurePosixPath:
    """The path of a member, with Windows' separators too; nothing is ever written to it."""
    slashed = name.replace("\\", "/")
    path = PurePosixPath(slashed)
    if path.is_absolute() or re.match(r"[A-Za-z]:/", slashed):
        raise AdapterRejected(f"{shown(name)} is an absolute path: pack the folder by its name")
    if ".." in path.parts:
        raise AdapterRejected(f"{shown(name)} leads out of its folder: pack without '..' in names")
    return path


def _is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLES)


def _members(files: list[UploadedFile], max_bytes: int) -> Iterator[Member]:
    """The files of an upload, or those of its archive where an archive is all there is."""
    if not files:
        raise AdapterRejected(f"no file was sent: {HOW_TO_SEND}")
    if len(files) == 1 and not _is_named_as_wanted(files[0].name):
        return archive_members(files[0].name, files[0].file, max_bytes)
    return map(_sent_alone, files)


def _is_named_as_wanted(name: str) -> bool:
    return PurePosixPath(name).name in ADAPTER_FILES or _is_pickle(name)


def _sent_alone(upload: UploadedFile) -> Member:
    if not _is_named_as_wanted(upload.name) and looks_packed(upload.name, upload.file):
        raise AdapterRejected(
            f"{shown(upload.name)} is an archive beside other files: {HOW_TO_SEND}"
        )
    return Member(upload.name, chunks_of(upload.file))


def _regular_file(folder: int, name: str) -> Iterator[bytes]:
    """The content of a file of an open folder, which may change while it is read."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for whoever writes to it.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise AdapterRejected(
                f"{name} is a symbolic link: put the file itself there"
            ) from error
        raise AdapterRejected(f"{name} cannot be read: check its permissions") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AdapterRejected(f"{name} is not a regular file: put the file itself there")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield from chunks_of(file)
    finally:
        os.close(descriptor)
