"""Programs of the tests that have a process to themselves, as vLLM wants one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def lines_of(module: str, folder: Path) -> list[list[Any]]:
    """Run a module of the tests with a folder to work in: the lines of JSON that it prints."""
    finished = subprocess.run(
        [sys.executable, "-m", module, str(folder)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("[")]
