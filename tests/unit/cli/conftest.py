"""What the tests of commands start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.threaded import in_thread
from tests.unit.cli.recording import CONFIG, WEIGHTS, Server


@pytest.fixture
def server() -> Iterator[Server]:
    with in_thread(Server()) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an adapter's files, and one more."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text("how it was trained")
    return folder
