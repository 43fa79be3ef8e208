"""What an origin holds of one model: every name, and where its versions lie.

Nothing here reads or writes anything: a catalog is a value, and a change makes the next one. That a
name's record changes as it may is `app.versions.records`' affair.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from app.versions.records import Record
from app.versions.store import DIGEST
from softserve.schema.fields import NAME

Family = Literal["adapters", "templates"]

FORMAT = 1
# An object that was not written to its end lacks it.
END = b"\n"
# Of the latest changes: whose answer got lost finds out here whether it was made.
MAX_REMEMBERED_CHANGES = 64
PLACE = re.compile(r"[0-9a-f]{64}-[0-9a-f]{8}")


class Unreadable(Exception):
    """It is no catalog, or one of a newer softserve."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A version in the origin: the folder of its objects, and what is told of it from afar.

    Each has a folder of its own, written once: a digest that was forgotten and comes again gets
    another.
    """

    place: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shelved:
    """The names of a family, and every version that one of them has."""

    records: Mapping[str, Record] = field(default_factory=dict)
    versions: Mapping[str, Stored] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything, at one moment. Each change makes the next generation."""

    format: int = FORMAT
    generation: int = 0
    changes: tuple[str, ...] = ()
    adapters: Shelved = field(default_factory=Shelved)
    templates: Shelved = field(default_factory=Shelved)

    def shelved(self, family: Family) -> Shelved:
        return self.adapters if family == "adapters" else self.templates

    def record(self, family: Family, name: str) -> Record:
        """That of a name; an empty one where there is none."""
        return self.shelved(family).records.get(name) or Record(name)

    @property
    def places(self) -> frozenset[str]:
        """The folders that are in use."""
        return frozenset(
            f"{family}/{stored.place}"
            for family, shelved in (("adapters", self.adapters), ("templates", self.templates))
            for stored in shelved.versions.values()
        )

    def with_records(
        self,
        family: Family,
        records: Mapping[str, Record],
        added: Mapping[str, Stored],
        change: str,
    ) -> "Catalog":
        """The next generation: these names are so, and versions that no name has are not named.

        `added` are versions that lie there now, `change` identifies the change. Raises `KeyError`
        where a record has a version that lies nowhere.
        """
        before = self.shelved(family)
        known = {**before.versions, **added}
        kept = {
            name: replace(record, damaged=None)
            for name, record in {**before.records, **records}.items()
            if not record.is_empty
        }
        versions = {digest: known[digest] for each in kept.values() for digest in each.digests}
        shelved = Shelved(kept, versions)
        changes = (*self.changes, change)[-MAX_REMEMBERED_CHANGES:]
        after = replace(self, generation=self.generation + 1, changes=changes)
        if family == "adapters":
            return replace(after, adapters=shelved)
        return replace(after, templates=shelved)


_CATALOG = TypeAdapter(Catalog)


def written(catalog: Catalog) -> bytes:
    return _CATALOG.dump_json(catalog) + END


def read(data: bytes) -> Catalog:
    """Raises `Unreadable`. Names and digests become those of files: nothing else is taken."""
    try:
        catalog = _CATALOG.validate_json(data)
    except ValidationError as error:
        raise Unreadable("it is damaged") from error
    if catalog.format != FORMAT:
        raise Unreadable("a newer softserve wrote it: update this one")
    for shelved in (catalog.adapters, catalog.templates):
        _check(shelved)
    return catalog


def _check(shelved: Shelved) -> None:
    for name, record in shelved.records.items():
        if NAME.fullmatch(name) is None or record.name != name:
            raise Unreadable(f"it has the name {name[:64]!r}, which none can have")
        if not {*record.digests, *record.served} <= shelved.versions.keys():
            raise Unreadable(f"it lacks a version of {name}")
    for digest, stored in shelved.versions.items():
        if DIGEST.fullmatch(digest) is None or PLACE.fullmatch(stored.place) is None:
            raise Unreadable("it has a version that is none")
