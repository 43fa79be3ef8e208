"""Reading only below permitted folders, wherever links lead.

Links are followed: a folder of the hub's cache and a volume of Kubernetes consist of them. What
counts is where they end, and what is judged there is what is opened: from the root on, no link is
followed any more, so that nobody can put one there in between.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# The hub's cache keeps files in `blobs`, and beside it `snapshots/COMMIT` with links to them.
SNAPSHOTS, BLOBS = "snapshots", "blobs"


class LeadsOutside(Exception):
    """A link that ends below no permitted folder."""


class NotAFile(Exception):
    """A folder, a named pipe, a device."""


def is_below(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path lies below one of `roots`, with all links resolved. A root does not."""
    return _root_of(resolved(path), roots) is not None


def resolved(path: Path) -> Path:
    """With all links resolved, as far as there is something. It never raises: links may loop."""
    return Path(os.path.realpath(path))


def with_blobs(roots: Sequence[Path]) -> tuple[Path, ...]:
    """`roots`, and for one that is a snapshot of the hub's cache, or all of them, its blobs."""
    snapshots = (each for root in roots for each in (root, root.parent) if each.name == SNAPSHOTS)
    return (*roots, *(each.parent / BLOBS for each in snapshots))


@contextmanager
def open_below(file: Path, roots: Sequence[Path]) -> Iterator[BinaryIO]:
    """A regular file below one of `roots`, with all links resolved.

    Raises:
        LeadsOutside: it ends elsewhere.
        NotAFile: it is something else.
        OSError: it is not there, or cannot be read.
    """
    end = Path(os.path.realpath(file, strict=True))
    root = _root_of(end, roots)
    if root is None:
        raise LeadsOutside
    descriptor = _open_from(root, end.relative_to(root).parts)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFile
    with os.fdopen(descriptor, "rb") as opened:
        yield opened


def _root_of(end: Path, roots: Sequence[Path]) -> Path | None:
    return next((root for root in map(resolved, roots) if root in end.parents), None)


def _open_from(root: Path, parts: Sequence[str]) -> int:
    """Open a file step by step from a folder on."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            below = os.open(part, flags, dir_fd=folder)
            os.close(folder)
            folder = below
        # Without O_NONBLOCK, opening a named pipe would wait for whoever writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
