"""The watched folder of adapters: a subfolder is an adapter, its name is the name."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from app.adapters.intake import Intake
from app.adapters.roots import is_below
from app.adapters.staging import stage_folder
from app.adapters.validation.tensors import is_cut_short
from app.errors import AdapterError
from app.versions.records import Watched
from app.versions.watcher import GONE, Found, Look
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

FROM_WATCHED_FOLDER = "adapter_dir"


class AdapterFolder:
    """Subfolders with an adapter's files.

    Links are followed to folders below the watched one and below `roots`.
    """

    rejections = AdapterError

    def __init__(self, intake: Intake, folder: Path, roots: Sequence[Path] = ()) -> None:
        self._intake = intake
        self.folder = folder
        self._roots = (folder, *roots)

    def look_around(self, acted_upon: Mapping[str, str]) -> dict[str, Look]:
        with os.scandir(self.folder) as entries:
            names = [each.name for each in entries if not each.name.startswith(".")]
        looks = {name: self.look_at(name, acted_upon.get(name)) for name in names}
        return {name: look for name, look in looks.items() if look != GONE}

    def look_at(self, name: str, acted_upon: str | None) -> Look:
        folder = self.folder / name
        try:
            signature = _signature(folder)
            if signature is None or signature == acted_upon:
                return Look(signature)
            if folder.is_symlink() and not is_below(folder, self._roots):
                return Look(
                    signature,
                    refusal="its folder is a link that leads outside: link to a folder below "
                    "--adapter-dir or an --adapter-root",
                )
            return Look(signature, missing=_missing(folder))
        except OSError as error:
            reason = f"its files cannot be read ({error.strerror}): check their permissions"
            return Look(f"unreadable: {error.strerror}", refusal=reason)

    @asynccontextmanager
    async def read(self, name: str) -> AsyncIterator[Found]:
        folder = (self.folder / name).resolve()
        async with self._intake.staged(partial(stage_folder, folder)) as (staged, version):

            async def publish(watched: Watched) -> None:
                await self._intake.registry.publish(
                    name, staged, version, FROM_WATCHED_FOLDER, watched=watched
                )

            yield Found(version.digest, publish)


def _signature(folder: Path) -> str | None:
    """Tells the content of a subfolder without reading it; None if it has no adapter's files."""
    parts = [_file_signature(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    if not any(parts):
        return None
    # A link that leads elsewhere now has changed, whatever it leads to.
    target = str(folder.readlink()) if folder.is_symlink() else ""
    return " ".join([*parts, target])


def _file_signature(file: Path) -> str:
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _missing(folder: Path) -> str | None:
    """What a copy still has to bring, None if it is complete as far as the sizes tell."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            return f"its folder has no {name}: copy it there"
    if is_cut_short(folder / WEIGHTS_FILE):
        return f"its {WEIGHTS_FILE} is shorter than its header says: copy it again"
    return None
