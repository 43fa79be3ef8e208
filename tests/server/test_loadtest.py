"""`make loadtest`, on the real engine: every kind of user, every answer checked."""

import json
import subprocess
import sys
from pathlib import Path

from tests.loadtest.support import CHANGES, ENVIRONMENT, ROOT, USERS
from tests.server.process import START_TIMEOUT_SECONDS


def test_a_load_of_every_kind_has_no_failure(tiny_model: Path, tmp_path: Path) -> None:
    """In FP32, so that texts are compared too. A user of each kind, in one process."""
    settings = {
        "SOFTSERVE_MODEL": str(tiny_model),
        "SOFTSERVE_PRECISION": "fp32",
        "SOFTSERVE_CONTEXT_WINDOW": "4096",
        "SOFTSERVE_KV_CACHE_GIB": "0.1",
    }
    load = ("--equal-weights", "-u", "10", "-r", "10", "-t", "20s", "--new-tokens", "8")
    own = ("--num-loras", "3", "--num-soft-prompts", "1", "--swap-seconds", "1")
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", *own, *load, "--report", str(tmp_path / "report")],
        cwd=ROOT,
        env=ENVIRONMENT | settings,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    completed = {name for name, each in report["by_user"].items() if each["completed"]}
    # Who leaves may find its answer complete before.
    assert completed - {"LeavingUser"} == USERS
    assert report["by_user"]["LeavingUser"]["left"] > 0
    assert report["total"]["failed"] == 0
    assert report["total"]["compared_texts"] > 0
    assert {each["name"] for each in report["changes"]} == CHANGES
