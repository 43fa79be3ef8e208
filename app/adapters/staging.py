"""Put an adapter that somebody sends into a staging folder: its two files, and nothing else.

What is sent is not trusted: the two files are written under names of our own, up to a limit.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from app.adapters.archive import (
    HOW_TO_SEND,
    MAX_CONFIG_BYTES,
    Member,
    archive_members,
    chunks_of,
    is_archive_name,
    shown,
)
from app.adapters.location import (
    adapter_folder,
    is_pickle,
    likeliest_pickle,
    not_read,
    several_adapters,
)
from app.adapters.roots import LeadsOutside, NotAFile, open_below, with_blobs
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE

MAX_MEMBERS = 1000


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


def stage_folder(source: Path, into: Path, max_bytes: int, *, roots: Sequence[Path] = ()) -> None:
    """Copy the two files of a folder, whose path the caller has resolved, to the folder `into`.

    They may be links that lead below one of `roots`; without any, below the folder.

    Raises:
        AdapterRejected: they are missing, empty, unreadable, not regular files, or lie elsewhere.
        AdapterTooLarge: the weights are above `max_bytes`, or the configuration above 1 MiB.
    """
    staging = _Staging(into, max_bytes)
    try:
        if source.is_symlink():
            raise NotADirectoryError
        folder = adapter_folder(source)
        names = sorted(file.name for file in folder.iterdir())
    except OSError as error:
        raise AdapterRejected("there is no such folder, or the server may not read it") from error
    permitted = with_blobs(roots or (source,))
    for name in names:
        if name in ADAPTER_FILES:
            staging.add(Member(name, _content(folder / name, permitted)))
        elif is_pickle(name):
            staging.add(Member(name, iter(())))
    staging.finish()


def link_leads_outside(name: str) -> str:
    return (
        f"{name} is a link that leads outside: put the file itself there, or link to one below "
        "--adapter-dir or an --adapter-root"
    )


def _content(file: Path, roots: Sequence[Path]) -> Iterator[bytes]:
    try:
        with open_below(file, roots) as opened:
            yield from chunks_of(opened)
    except LeadsOutside as error:
        raise AdapterRejected(link_leads_outside(file.name)) from error
    except NotAFile as error:
        raise AdapterRejected(
            f"{file.name} is not a regular file: put the file itself there"
        ) from error
    except FileNotFoundError as error:
        raise AdapterRejected(f"{file.name} is missing, or a link that leads nowhere") from error
    except OSError as error:
        raise AdapterRejected(f"{file.name} cannot be read: check its permissions") from error


class _Staging:
    """Takes members in any order, and writes the two of the folder that is furthest up."""

    def __init__(self, into: Path, max_bytes: int) -> None:
        self._into = into
        self._max_bytes = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: max_bytes}
        self._num_members = 0
        self._seen: set[PurePosixPath] = set()
        # The first is the one whose files are written; the others lie as far up as it does.
        self._folders: list[PurePosixPath] = []
        self._below: set[PurePosixPath] = set()
        self._pickles: dict[PurePosixPath, list[str]] = {}
        self._archive: str | None = None

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
        if is_pickle(path.name):
            self._pickles.setdefault(path.parent, []).append(path.name)
        elif is_archive_name(path.name):
            self._archive = member.name
        elif path.name in ADAPTER_FILES and self._is_wanted(path.parent):
            self._write(path.name, member.chunks)

    def finish(self) -> None:
        if len(self._folders) > 1:
            raise several_adapters(map(str, self._folders))
        missing = [file for file in ADAPTER_FILES if not (self._into / file).exists()]
        if missing:
            raise self._incomplete(missing)
        for file in ADAPTER_FILES:
            if (self._into / file).stat().st_size == 0:
                raise AdapterRejected(f"{file} is empty: send it again")

    def _is_wanted(self, folder: PurePosixPath) -> bool:
        """Whether the files of a folder are those to write, as far as is known."""
        depth = len(folder.parts)
        if not self._folders or depth < len(self._folders[0].parts):
            for file in ADAPTER_FILES:
                (self._into / file).unlink(missing_ok=True)
            self._below.update(self._folders)
            self._folders = [folder]
        elif depth > len(self._folders[0].parts):
            self._below.add(folder)
        elif folder not in self._folders:
            self._folders.append(folder)
        return folder == self._folders[0]

    def _incomplete(self, missing: list[str]) -> AdapterRejected:
        where = self._folders[0] if self._folders else next(iter(self._pickles), None)
        pickles = [] if where is None else self._pickles.get(where, [])
        if WEIGHTS_FILE in missing and pickles:
            return AdapterRejected(not_read(likeliest_pickle(pickles)))
        if self._below:
            return several_adapters(map(str, [*self._folders, *self._below]))
        if self._archive is not None:
            return AdapterRejected(
                f"{shown(self._archive)} is an archive in an archive: pack the files themselves"
            )
        are = "is" if len(missing) == 1 else "are"
        return AdapterRejected(f"{' and '.join(missing)} {are} missing: {HOW_TO_SEND}")

    def _write(self, file: str, chunks: Iterator[bytes]) -> None:
        num_bytes, max_bytes = 0, self._max_bytes[file]
        with (self._into / file).open("xb") as target:
            for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise AdapterTooLarge(f"{file} is above the limit of {_limit(file, max_bytes)}")
                target.write(chunk)


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


def _members(files: list[UploadedFile], max_bytes: int) -> Iterator[Member]:
    """The files of an upload, or those of its archive where an archive is all there is."""
    if not files:
        raise AdapterRejected(f"no file was sent: {HOW_TO_SEND}")
    if len(files) == 1 and not _is_named_as_wanted(_sent_path(files[0].name)):
        return archive_members(files[0].name, files[0].file, max_bytes)
    paths = [_sent_path(file.name) for file in files]
    names = [path.name for path in paths if path.name in ADAPTER_FILES]
    # A folder in the name of a sent file says nothing (RFC 7578), unless it tells two files apart.
    is_one_folder = len(names) == len(set(names))
    folders = {path.parent for path in paths if path.name in ADAPTER_FILES and is_one_folder}
    return (
        Member(
            path.name if path.parent in folders and _is_named_as_wanted(path) else str(path),
            chunks_of(_not_packed(file).file),
        )
        for path, file in zip(paths, files, strict=True)
    )


def _sent_path(name: str) -> PurePosixPath:
    """The path in the name of a sent file, which is one on the client's own disk."""
    parts = re.sub(r"^[A-Za-z]:", "", name.replace("\\", "/")).split("/")
    return PurePosixPath(*(part for part in parts if part not in {"", ".."}))


def _is_named_as_wanted(path: PurePosixPath) -> bool:
    return path.name in ADAPTER_FILES or is_pickle(path.name)


def _not_packed(upload: UploadedFile) -> UploadedFile:
    if is_archive_name(upload.name):
        raise AdapterRejected(
            f"{shown(upload.name)} is an archive beside other files: {HOW_TO_SEND}"
        )
    return upload
