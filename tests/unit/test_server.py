"""The process's exit code. What a signal does to it is tested on a real process."""

from pathlib import Path

import pytest

from app import server
from app.serving.warming import Warming
from app.settings import Settings
from tests.fake_engine import FakeEngine


def test_whatever_fails_as_it_starts_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(warming: Warming) -> None:
        raise RuntimeError

    monkeypatch.setattr(server, "VLLMEngine", lambda settings: FakeEngine())
    monkeypatch.setattr(Warming, "warm_all", fail)
    settings = Settings(
        port=0,
        adapter_store=tmp_path / "store",
        adapter_dir=tmp_path / "adapters",
        template_dir=tmp_path / "templates",
    )

    assert server.serve(settings) == 1
