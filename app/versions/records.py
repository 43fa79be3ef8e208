"""What a name points to, and how that changes. Nothing here reads or writes anything.

A name has a history of immutable versions, newest first. One of them is live: the bare name means
it. Every change is a function from a record to the next one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from app.engine.effect import Effect
from app.errors import SoftserveError
from softserve.schema.fields import SHOWN_DIGITS

VERSION_PREFIX = re.compile(r"[0-9a-f]{6,64}")
FROM_UPLOAD = "upload"
# The sources of what a watched folder holds: the settings that name one.
WATCHED_FOLDERS = ("adapter_dir", "template_dir")

# Makes the error to raise from its sentence.
Refusal = Callable[[str], SoftserveError]


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the history of a name; `effect` is None where it was not measured."""

    digest: str
    created_at: datetime
    source: str
    effect: Effect | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """What lay in the watched folder when it was last acted upon.

    `signature` tells it from other content without reading it; `digest` is known if it was valid,
    `rejected` is the reason if it was not.
    """

    signature: str
    digest: str | None = None
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a name.

    `kind` is that of its versions, where there are several kinds. `live` is None for a name that is
    not served. `damaged` says what of it was lost on disk.
    """

    name: str
    kind: str | None = None
    live: str | None = None
    history: tuple[Entry, ...] = ()
    watched: Watched | None = None
    damaged: str | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(entry.digest for entry in self.history)

    @property
    def effect(self) -> Effect | None:
        """That of the live version, if it is known."""
        live = (entry.effect for entry in self.history if entry.digest == self.live)
        return next(live, None)

    @property
    def rejected(self) -> str | None:
        """Why what lies in the watched folder, or in the store, is not served, if it is not."""
        return self.damaged or (None if self.watched is None else self.watched.rejected)

    @property
    def is_visible(self) -> bool:
        """Not so for a name that is only remembered because an operator has removed it."""
        return bool(self.history or self.rejected)

    @property
    def is_empty(self) -> bool:
        return not self.history and self.watched is None


def published(
    record: Record,
    entry: Entry,
    *,
    kind: str | None = None,
    watched: Watched | None = None,
    retention: int,
    is_in_use: Callable[[str], bool],
) -> Record:
    """A version is live.

    What was live comes right below it, and what had been rolled back from sinks to the bottom,
    where it is trimmed first: `retention` versions stay, and those in use. Another kind begins a
    history of its own.
    """
    below = _live_first(record) if record.kind == kind else ()
    history = (entry, *(each for each in below if each.digest != entry.digest))
    kept = (*history[:retention], *(e for e in history[retention:] if is_in_use(e.digest)))
    return Record(record.name, kind, entry.digest, kept, watched or record.watched)


def claimed(record: Record, source: str, watched: Watched | None) -> Record:
    """The live version is published again: once an operator did, it outlasts the watched folder."""
    if source not in WATCHED_FOLDERS:
        record = _with_live(record, source=source)
    return replace(record, watched=watched or record.watched)


def measured(record: Record, effect: Effect | None) -> Record:
    """The effect of the live version is known."""
    return _with_live(record, effect=effect)


def rolled_back(record: Record, digest: str) -> Record:
    """A version of the history is live. The order stays until something is published."""
    return replace(record, live=digest, damaged=None)


def removed(record: Record) -> Record:
    """What is in the watched folder was removed too, until it changes."""
    return Record(record.name, watched=record.watched and replace(record.watched, rejected=None))


def folder_gone(record: Record) -> Record:
    """Nothing is watched any more. What came from the folder and is live retires, with it the name.

    A retired name keeps its versions: it is back with a rollback, or with the folder.
    """
    forgotten = replace(record, watched=None)
    live = next((entry for entry in record.history if entry.digest == record.live), None)
    if live is None or live.source not in WATCHED_FOLDERS:
        return forgotten
    return replace(forgotten, live=None, history=_live_first(record))


def restored(record: Record, is_whole: Callable[[str], bool]) -> Record:
    """A record as it was read from disk, without the versions that are not whole any more."""
    history = tuple(entry for entry in record.history if is_whole(entry.digest))
    if record.live is None or is_whole(record.live):
        return replace(record, history=history)
    return replace(
        record,
        live=None,
        history=history,
        # So that what lies in the watched folder, if it is still there, is published again.
        watched=None,
        damaged=f"its live version {record.live[:SHOWN_DIGITS]} is damaged in the store: add it "
        "again",
    )


def older_version(record: Record, refusal: Refusal) -> str:
    """What a rollback goes to: the version below the live one; for a retired name, the first.

    Raises a `refusal` where there is none.
    """
    below = 0 if record.live is None else record.digests.index(record.live) + 1
    if below >= len(record.history):
        raise refusal(
            f"{record.name} has no version older than the live one: name the one to go to in "
            "version, or add it again"
        )
    return record.digests[below]


def find_version(record: Record, prefix: str, refusal: Refusal) -> str:
    """The digest that begins so, among those of a name. Raises a `refusal` where none does."""
    if VERSION_PREFIX.fullmatch(prefix) is None:
        raise refusal(
            f"a version of {record.name} is its digest, or at least six of its first digits: "
            f"{_versions_of(record)}"
        )
    found = [digest for digest in record.digests if digest.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    raise refusal(
        f"several versions of {record.name} begin with {prefix}: give more digits"
        if found
        else f"{record.name} has no version {prefix[:SHOWN_DIGITS]}: {_versions_of(record)}"
    )


def _with_live(record: Record, **changes: Any) -> Record:
    history = tuple(
        replace(entry, **changes) if entry.digest == record.live else entry
        for entry in record.history
    )
    return replace(record, history=history)


def _live_first(record: Record) -> tuple[Entry, ...]:
    """The history with what had been rolled back from at its end."""
    if record.live is None:
        return record.history
    start = record.digests.index(record.live)
    return record.history[start:] + record.history[:start]


def _versions_of(record: Record) -> str:
    if not record.history:
        return "it has none"
    return f"it has {', '.join(digest[:SHOWN_DIGITS] for digest in record.digests)}"
