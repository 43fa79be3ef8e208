"""A server on a fake engine, in a thread of its own: what a command finds behind --url."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import structlog

from app.http.application import create_app
from app.settings import Settings
from tests.fake_engine import FakeEngine
from tests.threaded import app_in_thread

TIMEOUT_SECONDS = 20.0


@contextmanager
def served(folder: Path, engine: FakeEngine | None = None, **settings: Any) -> Iterator[str]:
    """The URL of a server whose files are in this folder."""
    own: dict[str, Any] = {
        "adapter_store": folder / "store",
        "adapter_dir": folder / "adapters",
        "template_dir": folder / "templates",
    }
    engine = engine or FakeEngine()
    app = create_app(Settings(**own | settings), engine, lambda error: None, lambda: None)
    # The server's own log would be taken for what a command prints.
    with structlog.testing.capture_logs(), app_in_thread(app) as url:
        _wait_until_ready(url)
        yield url


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if httpx.get(f"{url}/health/ready", trust_env=False).is_success:
            return
        time.sleep(0.01)
    raise AssertionError("the server is not ready")
