"""The process's exit code. What a signal does to it is tested on a real process."""

import resource
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


@pytest.mark.parametrize(
    ("soft", "hard", "room", "raised_to"),
    [
        (1024, 524_288, 4096, 4608),
        (1024, resource.RLIM_INFINITY, 4096, 4608),
        (65_536, 65_536, 4096, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, None),
        (1024, 2048, 1536, 2048),
        (256, 256, 128, None),
    ],
)
def test_connections_fit_into_the_limit_on_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, room: int, raised_to: int | None
) -> None:
    now: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: now.append(limits))

    assert server._room_for(4096) == room
    assert now == ([] if raised_to is None else [(raised_to, hard)])
