"""Put an adapter that somebody sends into a staging folder: its two files, and nothing else.

What is sent is not trusted. Of an archive, only the two files are written, under names of our own,
and every limit counts the bytes that were read, whatever sizes an archive declares.

Archives of tar are read here and not by `tarfile`, which keeps a header in memory however long the
archive declares it to be.
"""

import errno
import gzip
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, Protocol

from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

MAX_CONFIG_BYTES = 1 << 20
MAX_MEMBERS = 1000

FILES = (CONFIG_FILE, WEIGHTS_FILE)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".zst", ".7z", ".rar")

CHUNK_BYTES = 1 << 18
# A member's name can be that long, and all names are kept.
MAX_TAR_HEADER_BYTES = 1 << 16
# 1,000 headers of tar and their padding are well below.
TAR_OVERHEAD_BYTES = 4 << 20
# 1,000 entries with long names.
MAX_ZIP_INDEX_BYTES = 1 << 20
MAX_SHOWN = 200

HOW_TO_SEND = (
    f"send {CONFIG_FILE} and {WEIGHTS_FILE}, or one .tar.gz, .tgz, .tar or .zip of their folder"
)
DAMAGED = "the archive is damaged or cut short: pack and send it again"


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
            if name in FILES or _is_pickle(name):
                staging.add(_Member(name, _regular_file(folder, name)))
    finally:
        os.close(folder)
    staging.finish()


def shown(value: object) -> str:
    """A value from a stranger's file, short and printable, for a sentence."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


@dataclass(frozen=True, slots=True)
class _Member:
    """A file that was sent, or a folder where `name` ends with a slash; `chunks` reads it."""

    name: str
    chunks: Iterator[bytes]


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


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

    def add(self, member: _Member) -> None:
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
        elif path.name in FILES:
            self._claim_folder(path)
            self._write(path.name, member.chunks)

    def finish(self) -> None:
        missing = [file for file in FILES if file not in self._staged]
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


def _members(files: list[UploadedFile], max_bytes: int) -> Iterator[_Member]:
    """The files of an upload, or those of its archive where an archive is all there is."""
    if not files:
        raise AdapterRejected(f"no file was sent: {HOW_TO_SEND}")
    if len(files) == 1 and not _is_named_as_wanted(files[0].name):
        return _archive_members(files[0], max_bytes)
    return map(_sent_alone, files)


def _is_named_as_wanted(name: str) -> bool:
    return PurePosixPath(name).name in FILES or _is_pickle(name)


def _sent_alone(upload: UploadedFile) -> _Member:
    if not _is_named_as_wanted(upload.name) and _looks_packed(upload):
        raise AdapterRejected(
            f"{shown(upload.name)} is an archive beside other files: {HOW_TO_SEND}"
        )
    return _Member(upload.name, _chunks(upload.file))


def _looks_packed(upload: UploadedFile) -> bool:
    return upload.name.lower().endswith(ARCHIVES) or _format_of(upload.file) is not None


def _archive_members(upload: UploadedFile, max_bytes: int) -> Iterator[_Member]:
    match _format_of(upload.file):
        case "zip":
            members = _zip_members(upload.file)
        case "gzip":
            members = _tar_members(
                _Bounded(gzip.GzipFile(fileobj=upload.file, mode="rb"), max_bytes)
            )
        case "tar":
            members = _tar_members(_Bounded(upload.file, max_bytes))
        case None:
            raise AdapterRejected(
                f"{shown(upload.name)} is not an archive that can be read: {HOW_TO_SEND}"
            )
    return map(_refuse_packed_again, members)


def _refuse_packed_again(member: _Member) -> _Member:
    if member.name.lower().endswith(ARCHIVES):
        raise AdapterRejected(
            f"{shown(member.name)} is an archive in an archive: pack the files themselves"
        )
    return member


def _format_of(file: BinaryIO) -> Literal["zip", "gzip", "tar"] | None:
    """What the first bytes tell; a name tells nothing."""
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    return "tar" if start[257:262] == b"ustar" else None


def _chunks(file: _Stream) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


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
            yield from _chunks(file)
    finally:
        os.close(descriptor)


class _Bounded:
    """What an archive unpacks to, up to a limit: members that nobody wants count too."""

    def __init__(self, stream: _Stream, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes + MAX_CONFIG_BYTES + TAR_OVERHEAD_BYTES
        self._num_bytes = 0

    def read(self, size: int, /) -> bytes:
        try:
            data = self._stream.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise AdapterRejected(DAMAGED) from error
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise AdapterTooLarge(
                f"the archive unpacks to more than {self._max_bytes:,} bytes: pack only "
                f"{CONFIG_FILE} and {WEIGHTS_FILE}"
            )
        return data

    def exactly(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            raise AdapterRejected(DAMAGED)
        return data


# What tar calls the kinds of members, in one byte.
TAR_FILES = (b"0", b"\0", b"7")
TAR_FOLDER = b"5"
TAR_LONG_NAME, TAR_LONG_LINK, TAR_PAX, TAR_PAX_GLOBAL = b"L", b"K", b"x", b"g"
TAR_HEADERS = (TAR_LONG_NAME, TAR_LONG_LINK, TAR_PAX, TAR_PAX_GLOBAL)
TAR_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
}
TAR_BLOCK_BYTES = 512


def _tar_members(stream: _Bounded) -> Iterator[_Member]:
    """The files and folders of a tar (POSIX or GNU), in one pass."""
    extended: dict[str, str] = {}
    num_headers = 0
    while (block := _tar_block(stream)) is not None:
        kind, size = block[156:157], _tar_number(block[124:136])
        if kind in TAR_HEADERS:
            num_headers += 1
            if size > MAX_TAR_HEADER_BYTES or num_headers > 3 * MAX_MEMBERS:
                raise AdapterRejected(f"the archive has too large headers: {HOW_TO_SEND}")
            extended |= _tar_header(kind, stream.exactly(size))
            stream.exactly(-size % TAR_BLOCK_BYTES)
            continue
        name = extended.get("path") or _tar_name(block)
        _check_tar_kind(kind, name, extended)
        size = _pax_size(extended, size)
        content = _tar_content(stream, size)
        yield _Member(f"{name}/" if kind == TAR_FOLDER else name, content)
        for _ in content:
            pass
        stream.exactly(-size % TAR_BLOCK_BYTES)
        extended = {}
    # The checksum of what is compressed stands at its end.
    for _ in _chunks(stream):
        pass


def _tar_block(stream: _Bounded) -> bytes | None:
    """The next member's header, None at the end."""
    block = stream.exactly(TAR_BLOCK_BYTES)
    if not block.strip(b"\0"):
        return None
    # The checksum is taken with spaces in its own place.
    if _tar_number(block[148:156]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise AdapterRejected(DAMAGED)
    return block


def _tar_number(field: bytes) -> int:
    """Octal digits, or with the highest bit set a binary number."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if re.fullmatch(rb"[0-7]*", digits) is None:
        raise AdapterRejected(DAMAGED)
    return int(digits or b"0", 8)


def _tar_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="backslashreplace")


def _tar_name(block: bytes) -> str:
    name = _tar_text(block[:100])
    is_posix = block[257:263] == b"ustar\0"
    prefix = _tar_text(block[345:500]) if is_posix else ""
    return f"{prefix}/{name}" if prefix else name


def _tar_header(kind: bytes, content: bytes) -> dict[str, str]:
    """What a header says of the next member."""
    if kind == TAR_LONG_NAME:
        return {"path": _tar_text(content)}
    return _pax_records(content) if kind == TAR_PAX else {}


def _pax_records(content: bytes) -> dict[str, str]:
    """Records of the form `LENGTH KEY=VALUE\\n`; the length counts the whole record."""
    records: dict[str, str] = {}
    start = 0
    while start < len(content):
        head = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=").match(content, start)
        end = start + int(head[1]) if head else 0
        if head is None or not head.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise AdapterRejected(DAMAGED)
        key, value = head[2], content[head.end() : end - 1]
        records[key.decode(errors="backslashreplace")] = value.decode(errors="backslashreplace")
        start = end
    return records


def _pax_size(extended: dict[str, str], size: int) -> int:
    stated = extended.get("size")
    if stated is None:
        return size
    if re.fullmatch(r"[0-9]{1,20}", stated, re.ASCII) is None:
        raise AdapterRejected(DAMAGED)
    return int(stated)


def _check_tar_kind(kind: bytes, name: str, extended: dict[str, str]) -> None:
    is_sparse = any(key.startswith("GNU.sparse.") for key in extended)
    if kind == TAR_FOLDER or (kind in TAR_FILES and not is_sparse):
        return
    what = TAR_REFUSED.get(kind, "neither a file nor a folder")
    raise AdapterRejected(f"{shown(name)} is {what}: pack only files and folders")


def _tar_content(stream: _Bounded, size: int) -> Iterator[bytes]:
    while size:
        chunk = stream.exactly(min(size, CHUNK_BYTES))
        size -= len(chunk)
        yield chunk


class _ShortReads:
    """A file of which `zipfile` can hold only so much in memory: its index is one read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        if size > MAX_ZIP_INDEX_BYTES:
            raise AdapterRejected(f"the archive has too large an index: {HOW_TO_SEND}")
        return self._file.read(MAX_ZIP_INDEX_BYTES if size < 0 else size)


# What zipfile raises on a file that is damaged, or damaged on purpose.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    IndexError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
ENCRYPTED = 0x1
# Others unpack without a bound on memory.
ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def _zip_members(file: BinaryIO) -> Iterator[_Member]:
    try:
        archive = zipfile.ZipFile(_ShortReads(file))
    except ZIP_ERRORS as error:
        raise AdapterRejected(DAMAGED) from error
    for info in archive.infolist():
        _check_zip_kind(info)
        yield _Member(info.filename, _zip_content(archive, info))


def _check_zip_kind(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & ENCRYPTED:
        raise AdapterRejected(f"{shown(info.filename)} is encrypted: pack without a password")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise AdapterRejected(
            f"{shown(info.filename)} is a symbolic link: pack only files and folders"
        )
    # Archives that were not packed on Unix have no kind.
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise AdapterRejected(
            f"{shown(info.filename)} is neither a file nor a folder: pack only files and folders"
        )


def _zip_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    if info.compress_type not in ZIP_COMPRESSIONS:
        raise AdapterRejected(
            f"{shown(info.filename)} is packed in an unusual way: pack it with deflate"
        )
    try:
        with archive.open(info) as file:
            yield from _chunks(file)
    except ZIP_ERRORS as error:
        raise AdapterRejected(DAMAGED) from error
