"""Objects in object storage or in a shared folder, by their paths. Nothing else imports obstore.

Objects are written whole or not at all, and what has been written is there when the call returns.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import structlog

from app.errors import OriginUnavailable, StartError
from app.versions.disk import sync

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = structlog.get_logger(__name__)

# For what is small. What never answers, as a network file system without its server, ends so too.
ANSWER_SECONDS = 5.0
# Without a byte; of what is large.
STALLED_SECONDS = 60.0
LONGEST_TRANSFER_SECONDS = 1800.0
CONNECT_SECONDS = 2.0
MAX_RETRIES = 2
TELL_AGAIN_SECONDS = 30.0
# In the name of a file that obstore has not put in its place yet.
HALF_WRITTEN = "#"
ALLOW_HTTP, AZURE_ACCOUNT = "AWS_ALLOW_HTTP", "AZURE_STORAGE_ACCOUNT_NAME"
UNREACHABLE = (
    "the origin of versions cannot be reached: nothing has changed, and what is live stays live; "
    "try again in a moment (the log has the reason)"
)


class NotThere(Exception):
    """There is no such object."""


class TooLarge(Exception):
    """An object is larger than what is wanted can be."""


class Changed(Exception):
    """An object is not any more what a change of it began with."""


@dataclass(frozen=True, slots=True)
class Blob:
    """An object; `modified` is by the origin's own clock."""

    path: str
    modified: datetime
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Content:
    """What an object held, and what tells it from its other contents."""

    data: bytes
    tag: dict[str, str]


class Blobs:
    """The objects below a URL. Every method may raise `OriginUnavailable`."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet. Raises `StartError` where the settings in the environment are bad.

        `folder` is that of a `file://` URL.
        """
        parts = urlsplit(url)
        self.url = url
        self.folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self._store = _store_of(url, self.folder)
        self._told_at = -TELL_AGAIN_SECONDS

    async def read(self, path: str, unless: dict[str, str] | None = None) -> Content | None:
        """A small object; None where its tag is still the one that is given.

        Raises:
            NotThere: there is none.
        """
        import obstore

        options: Any = {} if unless is None else {"if_none_match": unless["e_tag"]}
        async with self._asking(ANSWER_SECONDS):
            try:
                found = await obstore.get_async(self._store, self._full(path), options=options)
            except obstore.exceptions.NotModifiedError:
                return None
            return Content(bytes(await found.bytes_async()), _tag(found.meta))

    async def has(self, path: str) -> bool:
        """Whether there is such an object."""
        import obstore

        try:
            async with self._asking(ANSWER_SECONDS):
                await obstore.head_async(self._store, self._full(path))
        except NotThere:
            return False
        return True

    async def chunks(self, path: str, max_bytes: int) -> AsyncGenerator[bytes]:
        """A large object, piece by piece.

        Raises:
            NotThere: there is none.
            TooLarge: it is larger than that.
        """
        import obstore

        async with self._asking(None):
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await obstore.get_async(self._store, self._full(path))
            if found.meta["size"] > max_bytes:
                raise TooLarge
            pieces = aiter(found.stream())
            while True:
                async with asyncio.timeout(STALLED_SECONDS):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield bytes(piece)

    async def write(self, path: str, content: bytes | Path) -> None:
        """Put an object there, in place of another."""
        import obstore

        is_small = isinstance(content, bytes)
        await self._check_folder()
        async with self._asking(ANSWER_SECONDS if is_small else LONGEST_TRANSFER_SECONDS):
            await obstore.put_async(self._store, self._full(path), content)
            await self._sync(path)

    async def swap(self, path: str, data: bytes, tag: dict[str, str] | None) -> dict[str, str]:
        """Put an object there if its tag is still this; None: if there is none. Its new tag.

        Raises:
            Changed: it is not.
        """
        import obstore

        mode: Any = "create" if tag is None else tag
        await self._check_folder()
        async with self._asking(ANSWER_SECONDS):
            try:
                put = await obstore.put_async(self._store, self._full(path), data, mode=mode)
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                raise Changed from None
            await self._sync(path)
            return _tag(put)

    async def list(self, prefix: str, seconds: float = ANSWER_SECONDS) -> list[Blob]:
        """Every object below a path; more than a few take more than a moment."""
        import obstore

        await self._check_folder()
        found: list[Blob] = []
        async with self._asking(seconds):
            async for chunk in obstore.list(self._store, self._full(prefix)):
                found += [
                    Blob(self._own(meta["path"]), meta["last_modified"], meta["size"])
                    for meta in chunk
                ]
        return found

    async def delete(self, paths: Iterable[str]) -> None:
        """Have these objects gone."""
        import obstore

        await self._check_folder()
        for path in paths:
            async with self._asking(ANSWER_SECONDS):
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, self._full(path))

    async def sweep(self, path: str, before: datetime) -> None:
        """In a folder: remove what killed writers and deleted objects have left there."""
        await self._check_folder()
        if self.folder is not None:
            async with self._asking(LONGEST_TRANSFER_SECONDS):
                await asyncio.to_thread(_sweep_folder, self.folder / path, before.timestamp())

    @asynccontextmanager
    async def _asking(self, seconds: float | None) -> AsyncIterator[None]:
        """Raises in this server's words what obstore raises, and what takes longer than that."""
        import obstore

        try:
            async with asyncio.timeout(seconds):
                yield
        except FileNotFoundError as error:
            await self._check_folder()
            raise NotThere from error
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            self._tell(error)
            raise OriginUnavailable(UNREACHABLE) from error

    async def _check_folder(self) -> None:
        """A folder that is not there is not mounted: it is not made, and not taken for empty.

        Threads are few, and one that asks a network file system may never come back: this is asked
        only where obstore, which has threads of its own, has had an answer, or before a change.
        """
        if self.folder is None:
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if not await asyncio.to_thread(self.folder.is_dir):
                    raise NotADirectoryError(f"there is no folder {self.folder}")
        except OSError as error:
            self._tell(error)
            raise OriginUnavailable(UNREACHABLE) from error

    def _tell(self, error: Exception) -> None:
        """The log has the reason; not twice a second, which is how often it is asked."""
        now = time.monotonic()
        if now - self._told_at >= TELL_AGAIN_SECONDS:
            self._told_at = now
            why = str(error).partition("\n")[0] or f"no answer within {ANSWER_SECONDS:g} s"
            log.warning("the origin does not answer", url=self.url, why=why)

    def _full(self, path: str) -> str:
        return path if self.folder is None else f"{self.folder}/{path}".lstrip("/")

    def _own(self, path: str) -> str:
        return path if self.folder is None else f"/{path}".removeprefix(f"{self.folder}/")

    async def _sync(self, path: str) -> None:
        """obstore leaves it to the disk when it holds a file: a loss of power might take it."""
        if self.folder is not None:
            await asyncio.to_thread(_sync_file, self.folder / path)


def _store_of(url: str, folder: Path | None) -> "ObjectStore":
    # Imported late: without an origin nobody waits for it.
    import obstore
    from obstore.store import LocalStore, from_url

    if folder is not None:
        # From the root, so that the folder need not be there yet.
        return LocalStore(automatic_cleanup=False)
    # This one of Azure's settings obstore does not find in the environment by itself.
    config: Any = {}
    if url.startswith("az:"):
        config = {"account_name": os.environ.get(AZURE_ACCOUNT)}
    try:
        return from_url(
            url,
            config=config,
            client_options={
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=STALLED_SECONDS),
                "timeout": timedelta(seconds=LONGEST_TRANSFER_SECONDS),
                # obstore reads it from the environment, unless other options are given.
                "allow_http": os.environ.get(ALLOW_HTTP, "").lower() == "true",
            },
            retry_config={"max_retries": MAX_RETRIES},
        )
    except (obstore.exceptions.BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise StartError(
            f"the origin {url} cannot be used ({reason}): correct --origin, or the environment "
            "variables of its storage"
        ) from error


def _tag(meta: Any) -> dict[str, str]:
    """What tells a content from others; a None is not taken back."""
    return {key: meta[key] for key in ("e_tag", "version") if meta.get(key) is not None}


def _sweep_folder(folder: Path, before: float) -> None:
    # What is in a folder comes before it.
    for path in sorted(folder.rglob("*"), reverse=True):
        with suppress(OSError):
            if path.lstat().st_mtime > before:
                continue
            if path.is_dir():
                # Which only an empty one lets happen.
                path.rmdir()
            elif HALF_WRITTEN in path.name:
                path.unlink()


def _sync_file(file: Path) -> None:
    sync(file)
    sync(file.parent)
