"""Versions on disk: immutable folders, and a record for each name.

    versions/<digest>/{the version's files, version.json}
    names/<name>.json
    staging/

Whatever is new is written and synced in `staging/` and gets its place by one rename, and whatever
goes leaves by one. So the process may be killed at any moment: what lies outside `staging/` is
whole, and `staging/` is emptied when the store is opened.
"""

import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError, create_model

from app.errors import StartError
from app.versions.disk import sync
from app.versions.records import Record, restored

log = structlog.get_logger(__name__)

VERSION_FILE = "version.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


class Version(Protocol):
    """What is known of a version: its digest, and whatever its owner wants to know."""

    @property
    def digest(self) -> str: ...


V = TypeVar("V", bound=Version)


_RECORD = TypeAdapter(Record)


class _Damaged(Exception):
    """A file of the store is not what was written."""


class Store(Generic[V]):
    """One server's store of adapters, or of templates: `noun` says which.

    `files` are those of a version, and `version_type` is what pydantic reads of `version.json`.
    Methods block and may be called from any thread. The caller orders the changes of one name.
    """

    def __init__(
        self, folder: Path, noun: str, version_type: type[V], files: tuple[str, ...] = ()
    ) -> None:
        self._folder = folder.absolute()
        self.noun = noun
        self.title = f"the {noun} store"
        # pydantic has no generic models over a protocol.
        self._version_file: Any = create_model(
            "VersionFile", version=(version_type, ...), sizes=(dict[str, int], ...)
        )
        self._files = files
        self._names = self._folder / "names"
        self._versions = self._folder / "versions"
        self._staging = self._folder / "staging"
        # Opened in one thread and closed in another.
        self._lock = FileLock(self._folder / "lock", timeout=0, thread_local=False)
        # Over what follows, and held for renames at most: the event loop takes it too.
        self._mutex = threading.Lock()
        self._records: dict[str, Record] = {}
        self._known: dict[str, V] = {}
        self._pins: Counter[str] = Counter()

    def open(self) -> None:
        """Lock the store and read it. What is damaged is logged, marked, and not served.

        Raises:
            StartError: another server uses it, or it cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire()
            shutil.rmtree(self._staging, ignore_errors=True)
            for folder in (self._names, self._versions, self._staging):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._known = self._read_versions()
            self._records = self._read_records()
            # A damaged record may have named versions that no other names: they are left.
            if not any(record.damaged for record in self._records.values()):
                self.collect_all()
        except Timeout as error:
            raise StartError(
                f"another server uses {self.title} {self._folder}: stop it, or give this one a "
                "store of its own with --adapter-store"
            ) from error
        except OSError as error:
            self._lock.release()
            raise StartError(
                f"{self.title} {self._folder} cannot be written ({error.strerror or error}): free "
                "some disk space, check its permissions, or choose another with --adapter-store"
            ) from error

    def close(self) -> None:
        """Let another server have it."""
        self._lock.release()

    @property
    def records(self) -> dict[str, Record]:
        """The record of every name. A copy."""
        with self._mutex:
            return dict(self._records)

    def record(self, name: str) -> Record | None:
        """The record of a name as it was saved last, by whichever thread."""
        return self._records.get(name)

    def folder(self, digest: str) -> Path:
        return self._versions / digest

    def has(self, digest: str) -> bool:
        """Whether a version is in the store."""
        return digest in self._known

    def version(self, digest: str) -> V:
        """A version that is in the store."""
        return self._known[digest]

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty private folder on the store's file system, gone at the end."""
        folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def pinned(self, digest: str) -> Iterator[None]:
        """Keep a version on disk meanwhile, whether or not it is in a history, or there yet."""
        with self._mutex:
            self._pins[digest] += 1
        try:
            yield
        finally:
            with self._mutex:
                self._pins[digest] -= 1
                if not self._pins[digest]:
                    del self._pins[digest]

    def is_pinned(self, digest: str) -> bool:
        return digest in self._pins

    def add(self, staged: Path, version: V) -> None:
        """Take a staged folder in as a version, unless it is there. Pin the digest before."""
        sizes = {name: (staged / name).stat().st_size for name in self._files}
        content = self._version_file(version=version, sizes=sizes)
        (staged / VERSION_FILE).write_text(content.model_dump_json(exclude_defaults=True))
        for name in (*self._files, VERSION_FILE):
            (staged / name).chmod(0o444)
            sync(staged / name)
        sync(staged)
        target = self.folder(version.digest)
        with self._mutex:
            if version.digest in self._known and self._is_intact(target):
                return
            if target.exists():
                target.rename(staged.with_name(f"{staged.name}.damaged"))
            staged.rename(target)
            self._known[version.digest] = version
        sync(self._versions)

    def save(self, record: Record) -> None:
        """Make this the record of its name, durably; an empty one is forgotten."""
        if record.is_empty:
            self._record_file(record.name).unlink(missing_ok=True)
        else:
            with self.staging() as folder:
                written = folder / "record.json"
                written.write_bytes(_RECORD.dump_json(record, exclude={"damaged"}, indent=2))
                sync(written)
                written.replace(self._record_file(record.name))
        sync(self._names)
        with self._mutex:
            self._records[record.name] = record
            if record.is_empty:
                del self._records[record.name]

    def collect(self, digests: Iterable[str]) -> None:
        """Delete those of these versions that no history has and nobody has pinned."""
        with self.staging() as trash, self._mutex:
            held = self._pins.keys() | {
                digest for record in self._records.values() for digest in record.digests
            }
            for digest in set(digests) - held:
                with suppress(FileNotFoundError):
                    self.folder(digest).rename(trash / digest)
                self._known.pop(digest, None)

    def collect_all(self) -> None:
        """The same, of every version that is there."""
        self.collect([path.name for path in self._versions.iterdir()])

    def _record_file(self, name: str) -> Path:
        return self._names / f"{name}.json"

    def _read_versions(self) -> dict[str, V]:
        versions = {}
        for folder in self._versions.iterdir():
            try:
                versions[folder.name] = self._read_version(folder)
            except (_Damaged, OSError) as error:
                log.warning(f"damaged version in {self.title}", folder=str(folder), why=error)
        return versions

    def _read_records(self) -> dict[str, Record]:
        files = (file for file in self._names.iterdir() if file.suffix == ".json")
        return {file.stem: self._read_record(file) for file in files}

    def _read_record(self, file: Path) -> Record:
        try:
            record = _RECORD.validate_json(file.read_bytes())
        except (ValidationError, OSError) as error:
            log.warning(f"damaged record in {self.title}", file=str(file), why=error)
            lost = f"its record in the store is damaged: add the {self.noun} again"
            return Record(file.stem, damaged=lost)
        return restored(replace(record, name=file.stem), self._known.__contains__)

    def _read_version(self, folder: Path) -> V:
        try:
            content = self._version_file.model_validate_json((folder / VERSION_FILE).read_bytes())
        except ValidationError as error:
            raise _Damaged(f"{VERSION_FILE} cannot be read") from error
        if DIGEST.fullmatch(folder.name) is None or content.version.digest != folder.name:
            raise _Damaged(f"{VERSION_FILE} is of another version")
        for name in self._files:
            if (folder / name).stat().st_size != content.sizes.get(name):
                raise _Damaged(f"{name} does not have the size that was written")
        version: V = content.version
        return version

    def _is_intact(self, folder: Path) -> bool:
        try:
            self._read_version(folder)
        except (_Damaged, OSError):
            return False
        return True
