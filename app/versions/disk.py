"""Blocking work on a store's disk, off the event loop."""

import asyncio
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
