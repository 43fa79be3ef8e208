"""The versions of templates on disk: one file for each name, replaced whole.

    <store>/templates/<name>.json

A template is a short text, so that its record holds the versions themselves. A file is written
beside its place, synced, and renamed into it: whatever kills the process, a record is whole.
"""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from app.versions.history import Watched
from softserve.schema.templates import Template

log = structlog.get_logger(__name__)

UNFINISHED = ".new"


@dataclass(frozen=True, slots=True)
class TemplateVersion:
    """One immutable version; `digest` is that of its content."""

    digest: str
    created_at: datetime
    source: str
    template: Template


@dataclass(frozen=True, slots=True)
class TemplateRecord:
    """What is known of a name: `live` is None for one that is not served."""

    name: str
    live: str | None = None
    history: tuple[TemplateVersion, ...] = ()
    watched: Watched | None = None

    def version(self, digest: str) -> TemplateVersion:
        return next(version for version in self.history if version.digest == digest)


_RECORD = TypeAdapter(TemplateRecord)


class TemplateStore:
    """The records of one server. Its methods block; the caller orders them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def read(self) -> dict[str, TemplateRecord]:
        """Every record. One that is damaged is logged and left out: it is not served."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        records = {}
        for file in self._folder.iterdir():
            if file.suffix == UNFINISHED:
                file.unlink()
            elif (record := _read_record(file)) is not None:
                records[record.name] = record
        return records

    def save(self, record: TemplateRecord) -> None:
        """Make this the record of its name, durably; an empty one is forgotten."""
        file = self._folder / f"{record.name}.json"
        if record.history or record.watched is not None:
            written = file.with_suffix(UNFINISHED)
            with written.open("wb") as target:
                target.write(_RECORD.dump_json(record, exclude_defaults=True))
                target.flush()
                os.fsync(target.fileno())
            written.replace(file)
        else:
            file.unlink(missing_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_record(file: Path) -> TemplateRecord | None:
    try:
        record = _RECORD.validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        log.warning("damaged record of a template", file=str(file), why=error)
        return None
    digests = [version.digest for version in record.history]
    is_whole = record.live is None or record.live in digests
    if not is_whole or digests != [version.template.digest for version in record.history]:
        log.warning(
            "damaged record of a template", file=str(file), why="it is not what was written"
        )
        return None
    return record
