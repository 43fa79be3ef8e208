"""The private store on disk: immutable versions, and a record for each name.

    versions/<digest>/{adapter_config.json, adapter_model.safetensors, version.json}
    names/<name>.json
    staging/

Whatever is new is written and synced in `staging/` and gets its place by one rename, and whatever
goes leaves by one. So the process may be killed at any moment: what lies outside `staging/` is
whole, and `staging/` is emptied when the store is opened.
"""

import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from filelock import FileLock, Timeout
from platformdirs import user_data_path
from pydantic import TypeAdapter, ValidationError

from app.adapters.version import AdapterVersion
from app.engine.model import default as default_model
from app.errors import StartError
from app.settings import Settings
from app.versions.history import Entry, Watched
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterKind

log = structlog.get_logger(__name__)

VERSION_FILE = "version.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Record:
    """What the store knows of a name.

    `live` is None for a name that is not served. `damaged` says what of it was lost on disk; it is
    found out anew whenever the store is opened.
    """

    name: str
    kind: AdapterKind | None = None
    live: str | None = None
    history: tuple[Entry, ...] = ()
    watched: Watched | None = None
    damaged: str | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(entry.digest for entry in self.history)


@dataclass(frozen=True, slots=True)
class _VersionFile:
    version: AdapterVersion
    sizes: dict[str, int]


_RECORD = TypeAdapter(Record)
_VERSION_FILE = TypeAdapter(_VersionFile)


class _Damaged(Exception):
    """A file of the store is not what was written."""


def store_folder(settings: Settings) -> Path:
    """Where the store is: adapters fit one model, so without a setting each model has its own."""
    if settings.adapter_store is not None:
        return settings.adapter_store.expanduser()
    parent = user_data_path("softserve") / "adapters"
    if settings.model is None:
        return parent / default_model.NAME
    path = Path(settings.model).expanduser()
    model = str(path.resolve()) if path.is_dir() else settings.model
    # The last part for the eyes, the hash because two models may share it.
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", Path(model).name)
    return parent / f"{readable}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


class Store:
    """One server's store. Its methods block and may be called from any thread.

    The caller orders the changes of one name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._names = self._folder / "names"
        self._versions = self._folder / "versions"
        self._staging = self._folder / "staging"
        # Opened in one thread and closed in another.
        self._lock = FileLock(self._folder / "lock", timeout=0, thread_local=False)
        # Over what follows, and held for renames at most: the event loop takes it too.
        self._mutex = threading.Lock()
        self._records: dict[str, Record] = {}
        self._known: dict[str, AdapterVersion] = {}
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
                self.collect(path.name for path in list(self._versions.iterdir()))
        except Timeout as error:
            raise StartError(
                f"another server uses the adapter store {self._folder}: stop it, or give this one "
                "a store of its own with --adapter-store"
            ) from error
        except OSError as error:
            self._lock.release()
            raise StartError(
                f"the adapter store {self._folder} cannot be written ({error.strerror or error}): "
                "check its permissions, or choose another with --adapter-store"
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

    def version(self, digest: str) -> AdapterVersion:
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

    def add(self, staged: Path, version: AdapterVersion) -> None:
        """Take a staged folder in as a version, unless it is there. Pin the digest before."""
        sizes = {name: (staged / name).stat().st_size for name in (CONFIG_FILE, WEIGHTS_FILE)}
        content = _VERSION_FILE.dump_json(_VersionFile(version, sizes), indent=2)
        (staged / VERSION_FILE).write_bytes(content)
        for name in (*sizes, VERSION_FILE):
            (staged / name).chmod(0o444)
            _sync(staged / name)
        _sync(staged)
        target = self.folder(version.digest)
        with self._mutex:
            if version.digest in self._known and _is_intact(target):
                return
            if target.exists():
                target.rename(staged.with_name(f"{staged.name}.damaged"))
            staged.rename(target)
            self._known[version.digest] = version
        _sync(self._versions)

    def save_record(self, record: Record) -> None:
        """Make this the record of its name, durably."""
        with self.staging() as folder:
            written = folder / "record.json"
            written.write_bytes(_RECORD.dump_json(record, exclude={"damaged"}, indent=2))
            _sync(written)
            written.replace(self._record_file(record.name))
        _sync(self._names)
        with self._mutex:
            self._records[record.name] = record

    def delete_record(self, name: str) -> None:
        """Forget a name, durably."""
        self._record_file(name).unlink(missing_ok=True)
        _sync(self._names)
        with self._mutex:
            self._records.pop(name, None)

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

    def _record_file(self, name: str) -> Path:
        return self._names / f"{name}.json"

    def _read_versions(self) -> dict[str, AdapterVersion]:
        versions = {}
        for folder in self._versions.iterdir():
            try:
                versions[folder.name] = _read_version(folder)
            except (_Damaged, OSError) as error:
                log.warning("damaged version in the adapter store", folder=str(folder), why=error)
        return versions

    def _read_records(self) -> dict[str, Record]:
        return {
            file.stem: self._read_record(file)
            for file in self._names.iterdir()
            if file.suffix == ".json"
        }

    def _read_record(self, file: Path) -> Record:
        try:
            record = _RECORD.validate_json(file.read_bytes())
        except (ValidationError, OSError) as error:
            log.warning("damaged record in the adapter store", file=str(file), why=error)
            return Record(
                file.stem, damaged="its record in the store is damaged: add the adapter again"
            )
        history = tuple(entry for entry in record.history if entry.digest in self._known)
        if record.live is None or record.live in self._known:
            return replace(record, name=file.stem, history=history)
        # Forgetting what was watched has the folder published again, if it is still there.
        return replace(
            record,
            name=file.stem,
            live=None,
            history=history,
            watched=None,
            damaged=f"its live version {record.live[:12]} is damaged in the store: add it again",
        )


def _read_version(folder: Path) -> AdapterVersion:
    try:
        content = _VERSION_FILE.validate_json((folder / VERSION_FILE).read_bytes())
    except ValidationError as error:
        raise _Damaged(f"{VERSION_FILE} cannot be read") from error
    if DIGEST.fullmatch(folder.name) is None or content.version.digest != folder.name:
        raise _Damaged(f"{VERSION_FILE} is of another version")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if (folder / name).stat().st_size != content.sizes.get(name):
            raise _Damaged(f"{name} does not have the size that was written")
    return content.version


def _is_intact(folder: Path) -> bool:
    try:
        _read_version(folder)
    except (_Damaged, OSError):
        return False
    return True


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
