"""Version 0.1.0 kept a template's versions in the record of its name: `<folder>/<name>.json`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.versions.store import DIGEST, VERSION_FILE


def take_over(folder: Path) -> None:
    """Bring what version 0.1.0 has left into the store's own form, before the store is opened.

    A record may hold more than the store reads of it. So only the versions are written anew, and
    what is damaged is for the store to tell.
    """
    records = list(folder.glob("*.json"))
    for file in records:
        for digest, template in _versions_in(file):
            version = folder / "versions" / digest
            version.mkdir(mode=0o700, parents=True, exist_ok=True)
            (version / VERSION_FILE).write_text(json.dumps({"version": template, "sizes": {}}))
    if records:
        os.sync()
    for file in records:
        (folder / "names").mkdir(mode=0o700, exist_ok=True)
        file.rename(folder / "names" / file.name)


def _versions_in(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        for entry in json.loads(file.read_bytes())["history"]:
            if DIGEST.fullmatch(entry["digest"]):
                yield entry["digest"], entry["template"]
    except (ValueError, LookupError, TypeError):
        return
