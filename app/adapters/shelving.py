"""What the versions of adapters are made of in an origin: the two files, as they were sent."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from app.adapters.archive import MAX_CONFIG_BYTES
from app.adapters.intake import SENT, Intake
from app.adapters.staging import stage_folder
from app.adapters.validation import digest_of
from app.adapters.version import AdapterVersion
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

_VERSION = TypeAdapter(AdapterVersion)
# There may be thousands, and nobody is told.
NOT_TOLD = "trained_tokens"


class AdapterGoods:
    """Adapters as they travel. Each replica makes of them what it serves."""

    def __init__(self, intake: Intake, max_bytes: int) -> None:
        self._intake = intake
        self.files = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: max_bytes}

    def sent(self, folder: Path, version: AdapterVersion) -> Mapping[str, Path | bytes]:
        # Without an origin, only what is served was kept, which mostly is what was sent.
        kept = folder / SENT if (folder / SENT).is_dir() else folder
        return {name: kept / name for name in self.files}

    def digest(self, sent: Path, facts: Mapping[str, Any]) -> str:
        return digest_of(sent, facts.get("task"))

    @asynccontextmanager
    async def checked(
        self, sent: Path, facts: Mapping[str, Any]
    ) -> AsyncIterator[tuple[Path, AdapterVersion]]:
        stage = partial(stage_folder, sent)
        # Whoever added it has said that the base model is this one, or had it checked.
        staged = self._intake.staged(stage, force=True, task=facts.get("task"))
        async with staged as (folder, version):
            yield folder, replace(version, notes=tuple(facts.get("notes", ())))

    def facts(self, version: AdapterVersion) -> Mapping[str, Any]:
        return {key: value for key, value in asdict(version).items() if key != NOT_TOLD}

    def told(self, facts: Mapping[str, Any]) -> AdapterVersion:
        return _VERSION.validate_python(dict(facts))
