"""What a name points to, and how that changes. Nothing here reads or writes anything.

A name has a history of immutable versions, newest first. One of them is live: the bare name means
it, alone or in a split with others, and it may have a shadow. Both end with whatever changes which
version is live. Every change is a function from a record to the next one.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from app.engine.effect import Effect
from app.errors import InvalidRequest, SoftserveError
from app.versions.shadows import Shadow
from app.versions.splits import Split
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
    split: Split | None = None
    shadow: Shadow | None = None

    @property
    def served(self) -> frozenset[str]:
        """The versions that requests for the bare name run on."""
        return frozenset(
            [
                *([] if self.live is None else [self.live]),
                *([] if self.split is None else self.split.weights),
                *([] if self.shadow is None else [self.shadow.digest]),
            ]
        )

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(entry.digest for entry in self.history)

    @property
    def effect(self) -> Effect | None:
        """That of the live version, if it is known."""
        return self.effect_of(self.live)

    def effect_of(self, digest: str | None) -> Effect | None:
        """That of a version, if it is known."""
        return next((entry.effect for entry in self.history if entry.digest == digest), None)

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


def put_beside(
    record: Record, entry: Entry, *, retention: int, is_in_use: Callable[[str], bool]
) -> Record:
    """A version is the newest one, and what is live stays.

    `retention` versions stay, those that requests run on, and those in use.
    """
    history = (entry, *(each for each in record.history if each.digest != entry.digest))
    kept = (
        *history[:retention],
        *(e for e in history[retention:] if e.digest in record.served or is_in_use(e.digest)),
    )
    return replace(record, history=kept, damaged=None)


def claimed(record: Record, source: str, watched: Watched | None) -> Record:
    """The live version is published again: once an operator did, it outlasts the watched folder."""
    if source not in WATCHED_FOLDERS and record.live is not None:
        record = _with_entry(record, record.live, source=source)
    return replace(record, watched=watched or record.watched)


def measured(record: Record, digest: str, effect: Effect | None) -> Record:
    """The effect of a version is known."""
    return _with_entry(record, digest, effect=effect)


def rolled_back(record: Record, digest: str) -> Record:
    """A version of the history is live. The order stays until something is published."""
    return replace(record, live=digest, damaged=None, split=None, shadow=None)


def promoted(record: Record, digest: str) -> Record:
    """A version of the history is live, and what was live comes right below it."""
    below = (entry for entry in _live_first(record) if entry.digest != digest)
    history = (*(entry for entry in record.history if entry.digest == digest), *below)
    return replace(rolled_back(record, digest), history=history)


def shared(record: Record, split: Split) -> Record:
    """The bare name means several versions."""
    return replace(record, damaged=None, split=split)


def shadowed(record: Record, shadow: Shadow | None) -> Record:
    """A version gets copies of requests, or none does any more."""
    return replace(record, shadow=shadow)


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
    return replace(forgotten, live=None, history=_live_first(record), split=None, shadow=None)


def restored(record: Record, is_whole: Callable[[str], bool]) -> Record:
    """A record as it was read from disk, without the versions that are not whole any more.

    Without its live version it is not served. Without another of a split, or the shadow, the live
    one serves alone.
    """
    history = tuple(entry for entry in record.history if is_whole(entry.digest))
    lost = sorted(digest for digest in record.served if not is_whole(digest))
    if not lost:
        return replace(record, history=history)
    alone = replace(record, history=history, split=None, shadow=None)
    if record.live not in lost:
        return replace(
            alone,
            damaged=f"{lost[0][:SHOWN_DIGITS]}, which had a part of its requests, is damaged in "
            "the store: its live version serves alone; add the other again",
        )
    return replace(
        alone,
        live=None,
        # So that what lies in the watched folder, if it is still there, is published again.
        watched=None,
        damaged=f"its live version {record.live[:SHOWN_DIGITS]} is damaged in the store: add it "
        "again",
    )


def next_to_promote(record: Record, refusal: Refusal) -> str:
    """What a promotion makes live: the one version that is tried beside the live one.

    Raises a `refusal` where there is none, or several are.
    """
    split = [] if record.split is None else [*record.split.weights]
    shadow = [] if record.shadow is None else [record.shadow.digest]
    others = [digest for digest in split or shadow if digest != record.live]
    if len(others) == 1:
        return others[0]
    raise refusal(
        f"{record.name} has {'several versions' if others else 'no version'} beside the live one "
        f"in a split: name the one to promote in version; {_versions_of(record)}"
    )


def find_weights(record: Record, versions: Mapping[str, int], not_found: Refusal) -> dict[str, int]:
    """The weights of a split by digest, from those by what begins one.

    Raises `not_found`, or `InvalidRequest` for what is no split with the live version.
    """
    found = [(find_version(record, prefix, not_found), versions[prefix]) for prefix in versions]
    weights = dict(found)
    if len(weights) < len(found):
        raise _no_split("two of versions are the same: give each version once")
    if len(weights) < 2:
        raise _no_split(
            f"a split is among several versions: name another of {record.name} besides; "
            f"{_versions_of(record)}"
        )
    if record.live not in weights:
        live = "" if record.live is None else f", {record.live[:SHOWN_DIGITS]}"
        raise _no_split(
            f"a split of {record.name} has its live version{live}, which a rollback goes back to: "
            "give it a weight, or promote another version first"
        )
    return weights


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


def _no_split(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="versions")


def _with_entry(record: Record, digest: str, **changes: Any) -> Record:
    history = tuple(
        replace(entry, **changes) if entry.digest == digest else entry for entry in record.history
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
