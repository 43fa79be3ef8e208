"""What the tests of commands start from."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.threaded import in_thread
from tests.unit.cli.recording import CONFIG, WEIGHTS, Server
from tests.unit.cli.terminal import Terminal


@pytest.fixture
def server() -> Iterator[Server]:
    with in_thread(Server()) as server:
        yield server


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts commands, each in a terminal of its own."""
    with ExitStack() as stack:

        def start(*arguments: str) -> Terminal:
            started = Terminal(*arguments)
            stack.callback(started.close)
            return started

        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an adapter's files, and one more."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text("how it was trained")
    return folder
