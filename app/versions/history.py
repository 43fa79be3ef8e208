"""The versions that a name has had: which of them another word stands for.

Adapters have such a history, and so do prompt templates.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from app.errors import SoftserveError
from softserve.schema.fields import SHOWN_DIGITS

VERSION_PREFIX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the history of a name."""

    digest: str
    created_at: datetime
    source: str


@dataclass(frozen=True, slots=True)
class Watched:
    """The content of a watched folder that was last acted upon.

    `signature` tells it from other content without reading it; `digest` is known if it was valid,
    `rejected` is the reason if it was not.
    """

    signature: str
    digest: str | None = None
    rejected: str | None = None


class Dated(Protocol):
    """What a history is made of."""

    @property
    def digest(self) -> str: ...


E_co = TypeVar("E_co", bound=Dated, covariant=True)


class History(Protocol[E_co]):
    """A name, its live version (None: it is not served), and its versions, newest first."""

    @property
    def name(self) -> str: ...

    @property
    def live(self) -> str | None: ...

    @property
    def history(self) -> tuple[E_co, ...]: ...


def digests_of(history: History[Dated]) -> tuple[str, ...]:
    return tuple(entry.digest for entry in history.history)


def last_live_first(record: History[E_co]) -> tuple[E_co, ...]:
    """The history with what had been rolled back from at its end."""
    if record.live is None:
        return record.history
    place = digests_of(record).index(record.live)
    return record.history[place:] + record.history[:place]


def older(record: History[Dated], refusal: Callable[[str], SoftserveError]) -> str:
    """What a rollback goes to. Raises a `refusal` where there is nothing older."""
    place = 0 if record.live is None else digests_of(record).index(record.live) + 1
    if place >= len(record.history):
        raise refusal(
            f"{record.name} has no version older than the live one: name the one to go to in "
            "version, or add it again"
        )
    return record.history[place].digest


def find_version(
    record: History[Dated], prefix: str, refusal: Callable[[str], SoftserveError]
) -> str:
    """The digest that begins so, among those of a name. Raises a `refusal` where none does."""
    if VERSION_PREFIX.fullmatch(prefix) is None:
        raise refusal(
            f"a version of {record.name} is its digest, or at least six of its first digits: "
            f"{_versions_of(record)}"
        )
    found = [digest for digest in digests_of(record) if digest.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    raise refusal(
        f"several versions of {record.name} begin with {prefix}: give more digits"
        if found
        else f"{record.name} has no version {prefix[:SHOWN_DIGITS]}: {_versions_of(record)}"
    )


def _versions_of(record: History[Dated]) -> str:
    if not record.history:
        return "it has none"
    return f"it has {', '.join(digest[:SHOWN_DIGITS] for digest in digests_of(record))}"
