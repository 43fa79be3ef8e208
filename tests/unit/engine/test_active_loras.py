"""Which LoRAs a worker keeps, with softserve's way to count them as used and with vLLM's own.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("active_loras_in_vllm.py")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_same_loras_are_kept_in_the_same_order(told: dict[str, Any]) -> None:
    assert told["softserve"]["kept"] == told["vLLM"]["kept"]
    # Evictions from the slots, and from the memory beside them, were among it.
    assert told["vLLM"]["kept"][-1] == {"loaded": [4, 3, 5, 1], "in slots": [5, 1]}


def test_loras_in_slots_are_not_looked_up_in_a_list(told: dict[str, Any]) -> None:
    assert told["vLLM"]["lists"] == 15
    # Of the 15 times, 8 found one in a slot.
    assert told["softserve"]["lists"] == 7
