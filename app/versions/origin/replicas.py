"""Who else follows an origin: every replica beats, and says how far it is.

A heartbeat is an object that is written again and again; its age is by the origin's own clock, so
that the replicas' clocks need not agree.
"""

import asyncio
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from app.versions.origin.blobs import Blob, NotThere
from app.versions.origin.origin import Origin

FOLDER = "replicas"
BEAT_SECONDS = 3.0
# Several beats may be late. In whole seconds is what some object storage tells times in.
DEAD_SECONDS = 12.0
ASK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Beat:
    """What a replica says: the generation that it follows, and what of that it does not serve yet.

    `behind` are names with the reason, an empty one where they are on their way.
    """

    host: str = ""
    generation: int = 0
    behind: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replica:
    """Another replica, or this one, as it said last."""

    id: str
    beat: Beat


_BEAT = TypeAdapter(Beat)


class Replicas:
    """This replica among the others."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._host = socket.gethostname()
        # The oldest comes first in their order.
        self.id = f"{int(time.time() * 1000):013d}-{uuid.uuid4().hex[:8]}"
        self._alive: tuple[str, ...] = ()
        # By the origin's clock, a few seconds ago at most.
        self.now = datetime.min.replace(tzinfo=UTC)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that does what one of all does."""
        return self._alive[:1] == (self.id,)

    @property
    def num_alive(self) -> int:
        return len(self._alive)

    async def beat(self, generation: int, behind: dict[str, str]) -> None:
        """Say how far this one is, and look who is alive. Raises `OriginUnavailable`."""
        beat = Beat(self._host, generation, behind)
        await self._origin.blobs.write(self._path(self.id), _BEAT.dump_json(beat))
        self._alive = tuple(await self._ids())

    async def leave(self) -> None:
        """Be gone at once, not only when nothing was heard for long."""
        await self._origin.blobs.delete([self._path(self.id)])

    def lost(self) -> None:
        """Nothing is known of the others."""
        self._alive = ()

    async def wait(self, generation: int, label: str, seconds: float) -> list[Replica]:
        """The replicas that are alive, once each of them serves a name as of that generation.

        After `seconds` they are as they are. Raises `OriginUnavailable`.
        """
        deadline = time.monotonic() + seconds
        while True:
            replicas = await self._all()
            if all(has_settled(each.beat, generation, label) for each in replicas):
                return replicas
            if time.monotonic() > deadline:
                return replicas
            await asyncio.sleep(ASK_SECONDS)

    async def _all(self) -> list[Replica]:
        found = []
        for each in await self._ids():
            try:
                content = await self._origin.blobs.read(self._path(each))
                assert content is not None
                found.append(Replica(each, _BEAT.validate_json(content.data)))
            except (NotThere, ValidationError):
                # It has left, or is of another softserve.
                continue
        return found

    async def _ids(self) -> list[str]:
        """Those that are alive, the oldest first."""
        blobs = await self._origin.blobs.list(self._origin.path(FOLDER))
        self.now = max((blob.modified for blob in blobs), default=self.now)
        return sorted(_id(blob) for blob in alive(blobs))

    def _path(self, replica: str) -> str:
        return self._origin.path(FOLDER, f"{replica}.json")


def serves(beat: Beat, generation: int, label: str) -> bool:
    """Whether a replica serves a name as of that generation."""
    return beat.generation >= generation and label not in beat.behind


def has_settled(beat: Beat, generation: int, label: str) -> bool:
    """Whether it does, or has said why it does not."""
    return beat.generation >= generation and beat.behind.get(label) != ""


def alive(blobs: Sequence[Blob]) -> list[Blob]:
    """The heartbeats that are not older than the newest one by too much."""
    newest = max((blob.modified for blob in blobs), default=None)
    limit = timedelta(seconds=DEAD_SECONDS)
    return [blob for blob in blobs if newest is not None and newest - blob.modified <= limit]


def _id(blob: Blob) -> str:
    return blob.path.rpartition("/")[2].removesuffix(".json")
