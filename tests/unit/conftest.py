"""What every unit test starts from."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.adapters.intake import Intake
from app.adapters.registry import AdapterRegistry
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.versions import store as store_module
from app.versions import watcher as watcher_module
from tests.fake_engine import FakeEngine


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SOFTSERVE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the disk nor a watched folder is waited for longer than it takes."""
    monkeypatch.setattr(store_module, "sync", lambda path: None)
    monkeypatch.setattr(watcher_module, "SETTLED_SECONDS", 0.1)
    monkeypatch.setattr(watcher_module, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(watcher_module, "LOOK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(watcher_module, "RESCAN_SECONDS", 0.2)


@pytest.fixture
async def engine() -> FakeEngine:
    engine = FakeEngine()
    await engine.start()
    return engine


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        adapter_store=tmp_path / "store",
        adapter_dir=tmp_path / "adapters",
        adapter_root=(tmp_path / "root",),
        adapter_retention=3,
        max_loaded_adapters=8,
    )


@pytest.fixture
async def registry(engine: FakeEngine, settings: Settings) -> AsyncIterator[AdapterRegistry]:
    registry = AdapterRegistry(engine, settings, Metrics(max_names=10))
    await registry.open()
    yield registry
    await registry.close()


@pytest.fixture
def intake(engine: FakeEngine, registry: AdapterRegistry, settings: Settings) -> Intake:
    return Intake(engine, registry, settings)
