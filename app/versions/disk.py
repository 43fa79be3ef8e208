"""Blocking work on a store's disk, off the event loop, and what makes it last."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog

from app.errors import StoreUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


async def in_thread(store: str, work: Callable[..., T], *args: Any) -> T:
    """Run blocking work on `store` off the event loop.

    Who is cancelled leaves when the work has ended, so that nothing it needs goes away meanwhile.

    Raises:
        StoreUnavailable: its disk cannot be written.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        with telling_disk_failures(store):
            return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise


@contextmanager
def telling_disk_failures(store: str) -> Iterator[None]:
    """Raises `StoreUnavailable` in place of an `OSError` that is the disk's."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAILURES:
            raise
        log.exception(f"{store} cannot be written")
        raise StoreUnavailable(
            f"{store} cannot be written ({error.strerror}): nothing has changed; free some disk "
            "space, or check its permissions"
        ) from error


def replace_file(path: Path, content: str) -> None:
    """Put a new file in the place of `path`, whole and on disk, or leave everything as it was.

    Only its owner can read it. One writer at a time.
    """
    # Through a link, which stays one.
    target = path.resolve()
    # Always the same name: what somebody who was killed here has left goes with the next write.
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            _keep_owner(descriptor, target)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink()
        raise
    sync(target.parent)


def _keep_owner(descriptor: int, path: Path) -> None:
    """Who could read the file before can read it after root has changed it."""
    # Only root may give a file away, and root can read it whoever has it.
    with suppress(FileNotFoundError, PermissionError):
        before = path.stat()
        os.fchown(descriptor, before.st_uid, before.st_gid)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
