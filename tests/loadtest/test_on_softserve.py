"""The whole load test on softserve's own HTTP, with an engine whose texts show the versions."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.adapter_files import write_lora, write_soft_prompt
from tests.api.connections import listening
from tests.fake_engine import ARCHITECTURE, HIDDEN_SIZE, FakeEngine
from tests.loadtest.support import CHANGES, ENVIRONMENT, ROOT, USERS
from tests.server.process import SHIPPED_TEMPLATES


async def test_every_kind_of_user_is_answered_rightly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While an operator replaces, rolls back, adds and removes."""
    folders = [tmp_path / "adapter_dir" / name for name in ("first", "second", "third")]
    swapped = [tmp_path / name for name in ("one", "other")]
    for seed, folder in enumerate([*folders, *swapped]):
        write_lora(folder, ARCHITECTURE.modules, seed=seed)
    write_soft_prompt(tmp_path / "adapter_dir" / "prompt", 4, HIDDEN_SIZE)
    engine = FakeEngine(context_window=8192)
    async with listening(monkeypatch, tmp_path, engine, template_dir=SHIPPED_TEMPLATES) as (
        host,
        port,
    ):
        locust = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"),
            *("--host", f"http://{host}:{port}", "-u", "10", "-r", "10", "-t", "10s", "-s", "30"),
            *("--equal-weights", "--new-tokens", "8", "--long-prompt-words", "200"),
            *("--check-texts", "0.5", "--swap-seconds", "0.5"),
            *("--swap-files", ",".join(map(str, swapped))),
            *("--only-summary", "--report", str(tmp_path / "report")),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await locust.communicate()

    assert locust.returncode == 0, told.decode()
    report = json.loads((tmp_path / "report.json").read_text())
    completed = {name for name, each in report["by_user"].items() if each["completed"]}
    # Who leaves may find its answer complete before.
    assert completed - {"LeavingUser"} == USERS
    assert report["total"]["failed"] == 0
    assert report["by_user"]["LeavingUser"]["left"] > 0
    for name in USERS:
        assert report["by_user"][name]["compared_texts"] > 0
    assert {each["name"] for each in report["changes"]} == CHANGES
