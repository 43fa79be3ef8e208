"""Folders that pass for checked adapters, for tests of what happens to them afterwards."""

import hashlib
from pathlib import Path

from app.adapters.version import AdapterVersion
from app.engine.protocol import AdapterFiles
from app.versions.store import Store
from softserve.schema.adapters import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE, AdapterKind


def adapter_store(folder: Path) -> Store[AdapterVersion]:
    return Store(folder, "adapter", AdapterVersion, ADAPTER_FILES)


def a_version(text: str, kind: AdapterKind = "lora") -> AdapterVersion:
    digest = hashlib.sha256(text.encode()).hexdigest()
    if kind == "soft_prompt":
        return AdapterVersion(digest, kind, len(text) + 2, "echo", num_virtual_tokens=4)
    return AdapterVersion(digest, kind, len(text) + 2, "echo", rank=2, target_modules=("q_proj",))


def stage(folder: Path, text: str, kind: AdapterKind = "lora") -> AdapterVersion:
    """Write the files of a version into a folder; what differs between versions is `text`."""
    (folder / CONFIG_FILE).write_text("{}")
    (folder / WEIGHTS_FILE).write_text(text)
    return a_version(text, kind)


def files_of(folder: Path, text: str, kind: AdapterKind = "lora") -> AdapterFiles:
    return AdapterFiles(a_version(text, kind).digest, kind, folder)
