"""The files of an archive that somebody sends, which is not trusted.

Every limit counts the bytes that were read, whatever sizes an archive declares. The libraries that
read archives hold in memory what they are told to, so that each reads through a class that gives it
only so much.
"""

import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import ADAPTER_FILES

MAX_CONFIG_BYTES = 1 << 20
SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".zst", ".7z", ".rar")

CHUNK_BYTES = 1 << 18
# 1,000 headers of tar and their padding are well below.
TAR_OVERHEAD_BYTES = 4 << 20
# Of one member: four times Linux's longest path. `tarfile` calls itself for each 512 bytes of it.
MAX_TAR_HEADER_BYTES = 1 << 14
# 1,000 entries with long names.
MAX_ZIP_INDEX_BYTES = 1 << 20
MAX_SHOWN = 200

HOW_TO_SEND = (
    f"send {' and '.join(ADAPTER_FILES)}, or one .tar.gz, .tgz, .tar or .zip of their folder"
)
HOW_TO_PACK = "pack only files and folders, with `tar -h` those that links lead to"
DAMAGED = "the archive is damaged or cut short: pack and send it again"


@dataclass(frozen=True, slots=True)
class Member:
    """A file, or a folder where `name` ends with a slash; `chunks` reads it."""

    name: str
    chunks: Iterator[bytes]


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def archive_members(name: str, file: BinaryIO, max_bytes: int) -> Iterator[Member]:
    """The files and folders of an archive, in one pass: each is read before the next one.

    Raises:
        AdapterRejected: it is not an archive, damaged, or holds more than files and folders.
        AdapterTooLarge: it unpacks to more than `max_bytes`, the configuration and some headers.
    """
    match _format_of(file):
        case "zip":
            return _zip_members(file)
        case "gzip":
            return _tar_members(_Bounded(gzip.GzipFile(fileobj=file, mode="rb"), max_bytes))
        case "tar":
            return _tar_members(_Bounded(file, max_bytes))
        case None:
            raise AdapterRejected(
                f"{shown(name)} is not an archive that can be read: {HOW_TO_SEND}"
            )


def is_archive_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def chunks_of(file: _Stream) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def shown(value: object) -> str:
    """A value from a stranger's file, short and printable, for a sentence."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _format_of(file: BinaryIO) -> Literal["zip", "gzip", "tar"] | None:
    """What the first bytes tell; a name tells nothing."""
    file.seek(0)
    start = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    return "tar" if start[257:262] == b"ustar" else None


def _other_kind(name: str, kind: str) -> AdapterRejected:
    return AdapterRejected(f"{shown(name)} is {kind}: {HOW_TO_PACK}")


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
                f"{' and '.join(ADAPTER_FILES)}"
            )
        return data

    def exactly(self, size: int) -> bytes:
        # A header of tar may declare less than nothing.
        if size < 0 or len(data := self.read(size)) < size:
            raise AdapterRejected(DAMAGED)
        return data


# Before Python 3.11.10 and 3.12.6, `tarfile` takes a time that is the square of a run of digits.
TOO_MANY_DIGITS = re.compile(rb"(?<![0-9])[0-9]{100}")
NO_KIND = "neither a file nor a folder"
TAR_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}


class _TarHeader(io.RawIOBase):
    """What `tarfile` may read: one member's header, with those before it that extend it."""

    def __init__(self, stream: _Bounded) -> None:
        self._stream = stream
        self._num_bytes = 0

    def tell(self) -> int:
        return self._num_bytes

    def read(self, size: int = -1, /) -> bytes:
        self._num_bytes += size
        if self._num_bytes > MAX_TAR_HEADER_BYTES:
            raise AdapterRejected(f"the archive has too large headers: {HOW_TO_SEND}")
        data = self._stream.exactly(size)
        if TOO_MANY_DIGITS.search(data):
            raise AdapterRejected(DAMAGED)
        return data


def _tar_members(stream: _Bounded) -> Iterator[Member]:
    while (member := _next_of_tar(stream)) is not None:
        _check_tar_kind(member)
        content = _tar_content(stream, member.size)
        yield Member(f"{member.name}/" if member.isdir() else member.name, content)
        for _ in content:
            pass
        stream.exactly(-member.size % tarfile.BLOCKSIZE)
    # The checksum of what is compressed stands at its end.
    for _ in chunks_of(stream):
        pass


def _next_of_tar(stream: _Bounded) -> tarfile.TarInfo | None:
    """The next member's header, None at the end.

    It is read as the first one of a tar of its own: `tarfile` refuses that if it is damaged, where
    it would take a later one for the end, and holds no member that is behind it.
    """
    try:
        return tarfile.TarFile(fileobj=_TarHeader(stream), encoding="utf-8").next()
    except (tarfile.TarError, ValueError) as error:
        raise AdapterRejected(DAMAGED) from error


def _check_tar_kind(member: tarfile.TarInfo) -> None:
    is_sparse = member.issparse() or any(
        key.startswith("GNU.sparse.") for key in member.pax_headers
    )
    if is_sparse or not (member.isreg() or member.isdir()):
        raise _other_kind(member.name, TAR_KINDS.get(member.type, NO_KIND))


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
ZIP_KINDS = {stat.S_IFLNK: "a symbolic link"}
ENCRYPTED = 0x1
# Others unpack without a bound on memory.
ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def _zip_members(file: BinaryIO) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(_ShortReads(file))
    except ZIP_ERRORS as error:
        raise AdapterRejected(DAMAGED) from error
    for info in archive.infolist():
        _check_zip_kind(info)
        yield Member(info.filename, _zip_content(archive, info))


def _check_zip_kind(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & ENCRYPTED:
        raise AdapterRejected(f"{shown(info.filename)} is encrypted: pack without a password")
    kind = stat.S_IFMT(info.external_attr >> 16)
    # Archives that were not packed on Unix have no kind.
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _other_kind(info.filename, ZIP_KINDS.get(kind, NO_KIND))


def _zip_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    if info.compress_type not in ZIP_COMPRESSIONS:
        raise AdapterRejected(
            f"{shown(info.filename)} is packed in an unusual way: pack it with deflate"
        )
    try:
        with archive.open(info) as file:
            yield from chunks_of(file)
    except ZIP_ERRORS as error:
        raise AdapterRejected(DAMAGED) from error
