"""Which operators vLLM's layers run on a CPU, and that they are right.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.engine.native import needs_compiler

MODULE = "tests.unit.engine.row_operators_in_vllm"
pytestmark = needs_compiler
BY_ITSELF = [["native"], ["native"]]


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", MODULE], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_vllm_by_itself_takes_small_steps(told: dict[str, Any]) -> None:
    # Where this fails, see whether app/engine/plugin/row_operators.py is still worth it.
    assert told["unchanged"] == BY_ITSELF


def test_they_are_chosen_in_eager_mode(told: dict[str, Any]) -> None:
    ours_first = [["softserve", "native"]] * 2
    assert told["chosen"] == {"eager": ours_first, "compiled": BY_ITSELF, "no model": BY_ITSELF}
    assert told["silu"] == "NativeSiluAndMul"


def test_the_operators_run(told: dict[str, Any]) -> None:
    both = ["softserve::add_rms_norm", "softserve::rms_norm"]
    assert told["used"] == {
        "rows": both,
        "one row": both,
        "heads": both,
        "an odd width": both,
        # The sum is written into its input, which has to be whole.
        "a part of wider rows": ["softserve::rms_norm"],
    }


@pytest.mark.parametrize("layer", ["RMSNorm", "RMSNorm of a sum", "SwiGLU"])
def test_every_input_is_answered_rightly(told: dict[str, Any], layer: str) -> None:
    errors = told["errors"][layer]
    assert len(errors) == 15
    # PyTorch's small steps round three times.
    assert {case: error for case, error in errors.items() if error > 5} == {}


def test_a_row_does_not_depend_on_its_batch(told: dict[str, Any]) -> None:
    assert told["same alone"]
