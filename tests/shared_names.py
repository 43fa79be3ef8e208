"""Replicas without a server: the names of each in a store of its own, shared through an origin."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from app.adapters.registry import WORDS
from app.adapters.version import AdapterVersion
from app.versions.names import Names
from app.versions.origin.blobs import Blobs
from app.versions.origin.following import Followed, Follower
from app.versions.origin.origin import Origin
from app.versions.origin.shelf import Shelf
from app.versions.records import Record
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from tests.staged_versions import a_version, adapter_store, stage, text_of

TIMEOUT_SECONDS = 20.0
MODEL = "echo"


class StagedGoods:
    """Folders of `staged_versions` as they travel; one whose text is `refused` is not taken."""

    files: Mapping[str, int] = {CONFIG_FILE: 1000, WEIGHTS_FILE: 1000}

    def __init__(self, names: Names[AdapterVersion], refused: str | None = None) -> None:
        self._names = names
        self._refused = refused

    def sent(self, folder: Path, version: AdapterVersion) -> Mapping[str, Path | bytes]:
        return {name: folder / name for name in self.files}

    def digest(self, sent: Path, facts: Mapping[str, Any]) -> str:
        try:
            return a_version(text_of(sent)).digest
        except Exception:  # noqa: BLE001 (whatever is wrong with a damaged file)
            return "damaged"

    @asynccontextmanager
    async def checked(
        self, sent: Path, facts: Mapping[str, Any]
    ) -> AsyncIterator[tuple[Path, AdapterVersion]]:
        text = text_of(sent)
        if text == self._refused:
            raise WORDS.conflict("this replica does not take it")
        async with self._names.staging() as folder:
            for name in self.files:
                shutil.copy(sent / name, folder / name)
            yield folder, a_version(text)

    def facts(self, version: AdapterVersion) -> Mapping[str, Any]:
        return asdict(version)

    def told(self, facts: Mapping[str, Any]) -> AdapterVersion:
        return TypeAdapter(AdapterVersion).validate_python(dict(facts))


class SharedNames:
    """One replica."""

    def __init__(
        self, folder: Path, url: str, retention: int = 5, refused: str | None = None
    ) -> None:
        @asynccontextmanager
        async def ready(version: AdapterVersion) -> AsyncIterator[None]:
            yield

        async def settle(name: str) -> None:
            self.settled.append(name)

        self.settled: list[str] = []
        self.names = Names(adapter_store(folder), WORDS, retention, ready, lambda digest: None)
        self.origin = Origin(Blobs(url), MODEL)
        goods = StagedGoods(self.names, refused)
        self.names.shelf = Shelf(self.origin, "adapters", self.names.store, goods)
        self.follower = Follower(self.origin, [Followed(self.names, settle)])

    async def publish(self, name: str, text: str, *, live: bool = True) -> Record:
        async with self.names.staging() as folder:
            version = stage(folder, text)
            return await self.names.publish(name, folder, version, "upload", kind="lora", live=live)

    def live(self, name: str) -> str | None:
        """The digest that a name has here."""
        record = self.names.store.record(name)
        return None if record is None else record.live


@asynccontextmanager
async def sharing(
    folder: Path, url: str, retention: int = 5, refused: str | None = None
) -> AsyncIterator[SharedNames]:
    """A replica that follows, and has caught up."""
    replica = SharedNames(folder, url, retention, refused)
    replica.names.store.open()
    following = asyncio.create_task(replica.follower.run())
    try:
        await replica.follower.catch_up(TIMEOUT_SECONDS)
        yield replica
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        replica.names.store.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
