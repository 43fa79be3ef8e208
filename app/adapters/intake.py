"""Taking adapters in: from an upload, a folder or the hub to a checked version in staging."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog

from app.adapters.registry import AdapterRegistry
from app.adapters.sources import LocalFolder, fetch_hub, resolve_source
from app.adapters.staging import UploadedFile, stage_files, stage_folder
from app.adapters.validation import validate
from app.adapters.version import AdapterVersion
from app.engine.protocol import Engine
from app.settings import Settings
from app.versions.records import FROM_UPLOAD, Record
from softserve.schema.adapters import ADAPTER_FILES

log = structlog.get_logger(__name__)

# Below a version's folder, with an origin: the files as they were sent.
SENT = "sent"


class Intake:
    """What adds adapters to a registry. Every way in is checked alike."""

    def __init__(self, engine: Engine, registry: AdapterRegistry, settings: Settings) -> None:
        self._engine = engine
        self.registry = registry
        self._settings = settings
        self._max_bytes = settings.max_adapter_bytes
        self._in_thread = registry.names.in_thread

    async def add_upload(
        self,
        name: str,
        files: Iterable[UploadedFile],
        *,
        force: bool = False,
        task: int | None = None,
        live: bool = True,
    ) -> Record:
        """Check uploaded files and make them the live version of `name`, or put them beside that.

        Raises:
            InvalidRequest: no such name can be.
            AdapterRejected: the files are not an adapter that this server can run.
            AdapterConflict: the name is live as another kind, is split, or is not live.
        """
        self.registry.names.check(name)
        stage = partial(stage_files, files)
        async with self.staged(stage, force=force, task=task) as (folder, version):
            return await self.registry.publish(name, folder, version, FROM_UPLOAD, live=live)

    async def add_folder(
        self,
        name: str,
        folder: Path,
        source: str,
        *,
        roots: Sequence[Path] = (),
        force: bool = False,
        task: int | None = None,
        live: bool = True,
    ) -> Record:
        """Check a folder and make its files the live version. Raises as `add_upload` does.

        Links in it may lead below one of `roots`.
        """
        self.registry.names.check(name)
        stage = partial(stage_folder, folder, roots=roots)
        async with self.staged(stage, force=force, task=task) as (staged, version):
            return await self.registry.publish(name, staged, version, source, live=live)

    async def add_source(
        self,
        name: str,
        source: str,
        revision: str | None = None,
        *,
        force: bool = False,
        task: int | None = None,
        live: bool = True,
    ) -> Record:
        """As `add_folder`, from a folder below the permitted ones or from a hub repository."""
        self.registry.names.check(name)
        roots = (self._settings.adapter_dir, *self._settings.adapter_root)
        found = await self._in_thread(resolve_source, source, revision, roots)
        if isinstance(found, LocalFolder):
            return await self.add_folder(
                name, found.folder, source, roots=roots, force=force, task=task, live=live
            )
        async with self.registry.names.staging() as folder:
            fetched = await self._in_thread(fetch_hub, found, folder, self._max_bytes)
            return await self.add_folder(name, folder, fetched, force=force, task=task, live=live)

    @asynccontextmanager
    async def staged(
        self,
        stage: Callable[[Path, int], object],
        *,
        force: bool = False,
        task: int | None = None,
    ) -> AsyncIterator[tuple[Path, AdapterVersion]]:
        """Have `stage` fill a private folder with so many bytes at most, and check what it holds.

        `force` and `task` are those of `validate`.

        Raises:
            AdapterRejected: the files are not an adapter that this server can run.
        """
        architecture = self._engine.architecture
        async with self.registry.names.staging() as folder:
            await self._in_thread(stage, folder, self._max_bytes)
            if self.registry.names.shelf is not None:
                await self._in_thread(_keep_sent, folder)
            version = await self._in_thread(
                validate, folder, architecture, self._settings, force, task
            )
            if version.notes:
                log.info(
                    "an adapter is served otherwise than its files say",
                    version=version.digest,
                    notes=version.notes,
                )
            yield folder, version


def _keep_sent(folder: Path) -> None:
    """What is served otherwise is written in another file's place: this one stays as it is."""
    (folder / SENT).mkdir()
    for name in ADAPTER_FILES:
        (folder / SENT / name).hardlink_to(folder / name)
