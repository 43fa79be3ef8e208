"""The watched folder of templates: `NAME.yaml`, and the JSONL file that it names."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from app.errors import TemplateError, TemplateRejected
from app.templates.registry import TemplateRegistry
from app.templates.source import read_template
from app.versions.records import Watched
from app.versions.watcher import GONE, Found, Look

log = structlog.get_logger(__name__)

FROM_WATCHED_FOLDER = "template_dir"
SUFFIX, EXAMPLES_SUFFIX = ".yaml", ".jsonl"


class TemplateFolder:
    """YAML files. `on_live` is awaited with each name that has a new version."""

    rejections = TemplateError

    def __init__(
        self,
        registry: TemplateRegistry,
        folder: Path,
        on_live: Callable[[str], Awaitable[object]],
    ) -> None:
        self._registry = registry
        self._on_live = on_live
        self.folder = folder
        self._others: set[str] = set()

    def look_around(self, acted_upon: Mapping[str, str]) -> dict[str, Look]:
        self._tell_others()
        examples = self._examples()
        names = [file.stem for file in self._files(SUFFIX)]
        looks = {name: self._look_at(name, examples) for name in names}
        return {name: look for name, look in looks.items() if look != GONE}

    def look_at(self, name: str, acted_upon: str | None) -> Look:
        return self._look_at(name, self._examples())

    @asynccontextmanager
    async def read(self, name: str) -> AsyncIterator[Found]:
        try:
            template = await asyncio.to_thread(read_template, self._file(name))
        except OSError as error:
            raise TemplateRejected(
                f"it cannot be read ({error.strerror}): check its permissions"
            ) from error

        async def publish(watched: Watched) -> None:
            await self._registry.publish(name, template, FROM_WATCHED_FOLDER, watched=watched)
            await self._on_live(name)

        yield Found(template.digest, publish)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _files(self, suffix: str) -> list[Path]:
        with os.scandir(self.folder) as entries:
            return [
                Path(each)
                for each in entries
                if each.name.endswith(suffix) and not each.name.startswith(".")
            ]

    def _tell_others(self) -> None:
        """Once of each, in the log."""
        for file in self._files(""):
            if file.suffix not in (SUFFIX, EXAMPLES_SUFFIX) and file.name not in self._others:
                self._others.add(file.name)
                log.info(f"not a template: one is a file NAME{SUFFIX}", found=file.name)

    def _examples(self) -> str:
        """The status of every file of examples: a template may name any of them."""
        return " ".join(sorted(map(_status, self._files(EXAMPLES_SUFFIX))))

    def _look_at(self, name: str, examples: str) -> Look:
        status = _status(self._file(name))
        return Look(f"{status} {examples}") if status else GONE


def _status(file: Path) -> str:
    """Tells a file from its former content without reading it; empty where there is none."""
    try:
        status = file.lstat()
        with suppress(OSError):
            # Of what a link leads to, which may change while the link stays as it is.
            status = file.stat()
    except FileNotFoundError:
        return ""
    return f"{file.name} {status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_mode}"
