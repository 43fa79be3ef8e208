"""Blocking work on the store's disk, off the event loop."""

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from app.errors import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run blocking work off the event loop.

    Who is cancelled leaves when the work has ended, so that nothing it needs goes away meanwhile.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except OSError as error:
        if error.errno not in DISK_FAILURES:
            raise
        log.exception("the adapter store cannot be written")
        raise Unavailable(
            f"the adapter store cannot be written ({error.strerror}): nothing has changed; free "
            "some disk space, or check its permissions"
        ) from error
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise
