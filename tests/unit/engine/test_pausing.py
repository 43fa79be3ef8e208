"""Requests that are paused in vLLM make the same tokens as those that are not.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# By request and completion: its tokens, and behind them log probabilities where it has some.
Made = dict[str, list[float]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Made]]:
    """By engine, then by plan of pauses."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.unit.engine.pausing_in_vllm", tmp_path_factory.mktemp("it")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(line) for line in finished.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize("engine", ["as on a CPU", "as on a GPU", "without a prefix cache"])
@pytest.mark.parametrize(
    "plan", ["after_every_token", "after_every_token_for_no_time", "some_at_random"]
)
def test_a_pause_changes_no_token(made: dict[str, dict[str, Made]], engine: str, plan: str) -> None:
    """Greedy, seeded, several, penalties, adapters, and within prompts of several steps."""
    expected = made[engine]["never"]

    # A token that is computed again shares its step with others: a last bit may differ, in BF16.
    near = {name: pytest.approx(numbers, abs=2e-3) for name, numbers in expected.items()}
    assert made[engine][plan] == near
    # Otherwise equal tokens would show nothing.
    assert len({str(tokens) for tokens in expected.values()}) > len(expected) / 2
