"""Which encoder inputs are encoded, and what every request gets.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("encoder_sharing_in_vllm.py")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_what_is_equal_is_encoded_once(told: dict[str, Any]) -> None:
    encoded = [step["encoded"] for step in told["steps"]]

    assert sorted(encoded[0]) == ["x", "y", "z"]
    assert encoded[1:] == [[], []]


def test_every_request_gets_its_own_in_the_order_of_the_batch(told: dict[str, Any]) -> None:
    assert [step["got"] for step in told["steps"]] == [
        ["xx", "yyy", "xx", "z"],
        ["xx", "z"],
        ["yyy"],
    ]


def test_every_token_has_the_lora_of_its_request(told: dict[str, Any]) -> None:
    assert [step["loras"] for step in told["steps"]] == [
        [1, 1, 0, 0, 0, 1, 1, 2],
        [1, 1, 2],
        [0, 0, 0],
    ]


def test_what_was_used_last_is_kept(told: dict[str, Any]) -> None:
    assert (told["used"], told["kept"]) == (3, ["a", "c"])
