"""Folders that pass for checked adapters, for tests of what happens to them afterwards."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

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
    tensors = {f"{name}.weight": np.ones((1, 1), np.float32) for name in ("lora_A", "lora_B")}
    save_file(tensors, folder / WEIGHTS_FILE, {"text": text})
    return a_version(text, kind)


def text_of(folder: Path) -> str:
    """What a staged version differs in from others."""
    with safe_open(folder / WEIGHTS_FILE, "np") as weights:
        text: str = weights.metadata()["text"]
    return text


def files_of(folder: Path, text: str, kind: AdapterKind = "lora") -> AdapterFiles:
    return AdapterFiles(stage(folder, text, kind).digest, kind, folder)
