"""What nothing in an origin points to any more, deleted once it is old.

A version's objects are written before the catalog names them, each time in a folder of their own:
so what is young may be on its way into the catalog, and what is old and not named never will be.
"""

from datetime import datetime, timedelta

import structlog

from app.versions.origin.origin import Origin
from app.versions.origin.replicas import FOLDER as REPLICAS

log = structlog.get_logger(__name__)

# Longer than anything takes from its first object to the catalog.
KEPT = timedelta(hours=2)
LISTED_WITHIN_SECONDS = 600.0
VERSIONS = ("adapters", "templates")


async def collect(origin: Origin, now: datetime) -> int:
    """Delete it; `now` is by the origin's clock. How many objects went.

    Raises:
        OriginUnavailable: it is done another time.
    """
    blobs = [
        blob
        for family in (*VERSIONS, REPLICAS)
        for blob in await origin.blobs.list(origin.path(family), LISTED_WITHIN_SECONDS)
        if now - blob.modified > KEPT
    ]
    # After the objects: what came into the catalog meanwhile is not garbage.
    await origin.refresh()
    places = origin.catalog.places
    garbage = [
        blob.path
        for blob in blobs
        if "/".join(blob.path.removeprefix(f"{origin.folder}/").split("/")[:2]) not in places
    ]
    await origin.blobs.delete(garbage)
    await origin.trim()
    await origin.blobs.sweep(origin.folder, now - KEPT)
    if garbage:
        log.info("garbage of the origin is deleted", objects=len(garbage))
    return len(garbage)
