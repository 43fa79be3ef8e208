"""The one object of an origin that is changed, by compare-and-swap.

Object storage does that by itself. In a folder, which has no such thing, every content is a file of
its own with the next number, and a number can be taken only once. The files are trimmed by age,
never by count: a writer that had stopped for long could take a number again whose file is gone.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from app.versions.origin.blobs import Blobs, Changed, NotThere

# Far less than a number stays taken.
LONGEST_CHANGE_SECONDS = 600.0
KEPT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Read:
    """What the object holds, and what a swap of it needs to know.

    `data` is None where it holds what it did.
    """

    data: bytes | None
    seen: object


class Document(Protocol):
    """An object that several writers change. Every method may raise `OriginUnavailable`."""

    async def read(self, seen: object | None) -> Read:
        """What it holds, if that is not what was `seen`. Raises `NotThere`."""

    async def swap(self, data: bytes, seen: object | None) -> object:
        """Have it hold this if it is still what was `seen`; None: if it is not there.

        What is seen of it then. Raises `Changed`, where another writer came first.
        """

    async def trim(self) -> None:
        """Forget what it held long ago."""


def document_of(blobs: Blobs, path: str, end: bytes) -> Document:
    """The document at a path without its suffix. What does not end so was not written whole."""
    if blobs.folder is None:
        return TaggedDocument(blobs, f"{path}.json")
    return NumberedDocument(blobs, path, end)


class TaggedDocument:
    """In object storage: a write may depend on the tag of what it replaces."""

    def __init__(self, blobs: Blobs, path: str) -> None:
        self._blobs = blobs
        self._path = path

    async def read(self, seen: object | None) -> Read:
        assert seen is None or isinstance(seen, dict)
        content = await self._blobs.read(self._path, unless=seen)
        return Read(None, seen) if content is None else Read(content.data, content.tag)

    async def swap(self, data: bytes, seen: object | None) -> object:
        assert seen is None or isinstance(seen, dict)
        return await self._blobs.swap(self._path, data, seen)

    async def trim(self) -> None:
        """There is one content only."""


@dataclass(frozen=True, slots=True)
class _Number:
    """The highest that was taken, `at` a time on this process's clock."""

    value: int
    at: float


class NumberedDocument:
    """In a folder: one file for each content, the highest number holds."""

    def __init__(self, blobs: Blobs, path: str, end: bytes) -> None:
        self._blobs = blobs
        self._path = path
        self._end = end

    async def read(self, seen: object | None) -> Read:
        at = time.monotonic()
        if seen is not None:
            assert isinstance(seen, _Number)
            if not await self._blobs.has(self._file(seen.value + 1)):
                if await self._blobs.has(self._file(seen.value)):
                    return Read(None, _Number(seen.value, at))
                raise NotThere
        numbers = await self._numbers()
        for number in numbers:
            content = await self._blobs.read(self._file(number))
            assert content is not None
            # After a loss of power it may not be whole. Its number is taken all the same.
            if content.data.endswith(self._end):
                return Read(content.data, _Number(numbers[0], at))
        raise NotThere

    async def swap(self, data: bytes, seen: object | None) -> object:
        assert seen is None or isinstance(seen, _Number)
        number = await self._first_number() if seen is None else seen.value + 1
        if seen is not None and time.monotonic() - seen.at > LONGEST_CHANGE_SECONDS:
            raise Changed
        at = time.monotonic()
        await self._blobs.swap(self._file(number), data, None)
        return _Number(number, at)

    async def trim(self) -> None:
        blobs = await self._blobs.list(self._path)
        latest = max((blob.modified for blob in blobs), default=None)
        newest = max((blob.path for blob in blobs), default=None)
        await self._blobs.delete(
            blob.path
            for blob in blobs
            if latest is not None
            and blob.path != newest
            and (latest - blob.modified).total_seconds() > KEPT_SECONDS
        )

    async def _first_number(self) -> int:
        """The one that follows contents of which none is whole. Raises `Changed` if one is."""
        try:
            await self.read(None)
        except NotThere:
            return max(await self._numbers(), default=0) + 1
        raise Changed

    async def _numbers(self) -> list[int]:
        """Those that are taken, the highest first."""
        blobs = await self._blobs.list(self._path)
        names = [blob.path.rpartition("/")[2].removesuffix(".json") for blob in blobs]
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)

    def _file(self, number: int) -> str:
        return f"{self._path}/{number:012d}.json"
