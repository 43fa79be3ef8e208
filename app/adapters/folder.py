"""The watched folder of adapters: a subfolder is an adapter, its name is the name."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog

from app.adapters.intake import Intake
from app.adapters.leftovers import is_document, why_no_adapter, why_no_weights
from app.adapters.location import adapter_folder, has_adapter_files
from app.adapters.roots import is_below, resolved, with_blobs
from app.adapters.staging import link_leads_outside, stage_folder
from app.adapters.validation.tensors import is_cut_short
from app.errors import AdapterError, AdapterRejected
from app.versions.records import Watched
from app.versions.watcher import GONE, Found, Look
from softserve.schema.adapters import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE

log = structlog.get_logger(__name__)

FROM_WATCHED_FOLDER = "adapter_dir"
LINK_LEADS_OUTSIDE = (
    "its folder is a link that leads outside: link to a folder below --adapter-dir or an "
    "--adapter-root"
)


class AdapterFolder:
    """Subfolders with an adapter's files, or with one that has them; the rest is told why not.

    Links are followed to what lies below the watched folder and below `roots`.
    """

    rejections = AdapterError

    def __init__(self, intake: Intake, folder: Path, roots: Sequence[Path] = ()) -> None:
        self._intake = intake
        self.folder = folder
        self._roots = (folder, *roots)
        self._documents: set[str] = set()

    def look_around(self, acted_upon: Mapping[str, str]) -> dict[str, Look]:
        with os.scandir(self.folder) as entries:
            names = [each.name for each in entries if not each.name.startswith(".")]
        looks = {name: self.look_at(name, acted_upon.get(name)) for name in names}
        return {name: look for name, look in looks.items() if look != GONE}

    def look_at(self, name: str, acted_upon: str | None) -> Look:
        path = self.folder / name
        try:
            if not os.path.lexists(path):
                return GONE
            if path.is_symlink() and not is_below(path, self._roots):
                return _refused(LINK_LEADS_OUTSIDE)
            if not path.is_dir() or not has_adapter_files(folder := adapter_folder(path)):
                return self._leftover(path)
            signature = _signature(path, folder)
            if signature == acted_upon:
                return Look(signature)
            if outside := self._link_outside(folder):
                return Look(signature, refusal=link_leads_outside(outside))
            return Look(signature, missing=_missing(folder))
        except AdapterRejected as error:
            return _refused(error.message)
        except OSError as error:
            reason = f"its files cannot be read ({error.strerror}): check their permissions"
            return Look(f"unreadable: {error.strerror}", refusal=reason)

    def _leftover(self, path: Path) -> Look:
        """What is no adapter as it stands. It may still become one while it is copied."""
        if is_document(path):
            if path.name not in self._documents:
                self._documents.add(path.name)
                log.info("not an adapter: ignored", found=path.name)
            return GONE
        reason = why_no_adapter(path)
        return Look(f"no adapter: {reason}", missing=reason, is_empty=True)

    def _link_outside(self, folder: Path) -> str | None:
        permitted = with_blobs(self._roots)
        links = (folder / name for name in ADAPTER_FILES if (folder / name).is_symlink())
        return next((link.name for link in links if not is_below(link, permitted)), None)

    @asynccontextmanager
    async def read(self, name: str) -> AsyncIterator[Found]:
        folder = resolved(self.folder / name)
        stage = partial(stage_folder, folder, roots=self._roots)
        async with self._intake.staged(stage) as (staged, version):

            async def publish(watched: Watched) -> None:
                await self._intake.registry.publish(
                    name, staged, version, FROM_WATCHED_FOLDER, watched=watched
                )

            yield Found(version.digest, publish)


def _refused(reason: str) -> Look:
    return Look(f"no adapter: {reason}", refusal=reason)


def _signature(path: Path, folder: Path) -> str:
    """Tells the content of `folder`, at or below what lies at `path`, without reading it."""
    parts = [_file_signature(folder / name) for name in ADAPTER_FILES]
    # A link that leads elsewhere now has changed, whatever it leads to.
    target = str(path.readlink()) if path.is_symlink() else ""
    below = [] if folder == path else [str(folder.relative_to(path))]
    return " ".join([*parts, target, *below])


def _file_signature(file: Path) -> str:
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _missing(folder: Path) -> str | None:
    """What a copy still has to bring, None if it is complete as far as the sizes tell."""
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not weights.exists() and (reason := why_no_weights(folder)):
        return reason
    for file in (config, weights):
        if not file.exists():
            return f"its folder has no {file.name}: copy it there"
    if weights.is_file() and is_cut_short(weights):
        return f"its {WEIGHTS_FILE} is shorter than its header says: copy it again"
    return None
