"""DoRAs in vLLM's LoRA layers against the formula, in float64.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.instructions import where_it_runs

SCRIPT = Path(__file__).with_name("dora_in_vllm.py")
# The rounding of FP32, and that of two digits of 8 bits.
TOLERANCES = {"float32": 1e-5, "int8": 1e-3}


@pytest.mark.parametrize("kernel", [["torch"], []], ids=["torch", "the best there is"])
@pytest.mark.parametrize("precision", ["float32", where_it_runs("int8")])
def test_every_token_gets_its_own_magnitudes(precision: str, kernel: list[str]) -> None:
    """Of all kinds of linear layers; slots are taken by one adapter after the other."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "cpu", precision, "eager", *kernel],
        capture_output=True,
        text=True,
        check=True,
    )

    batches: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])

    assert len(batches) == 5
    for batch, errors in batches.items():
        assert len(errors) == 5
        assert max(errors.values()) < TOLERANCES[precision], batch
