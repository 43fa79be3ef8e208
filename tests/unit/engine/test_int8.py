"""INT8 products: as exact as the weights are. vLLM runs in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instructions import needs_int8

pytestmark = needs_int8
SCRIPT = Path(__file__).with_name("int8_in_vllm.py")


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


@pytest.mark.parametrize(
    "product", ["two digits", "with a bias", "in a batch of batches", "of a layer"]
)
def test_activations_of_two_digits_lose_nothing(measured: dict[str, float], product: str) -> None:
    assert measured[product] < 5e-4


def test_one_digit_would(measured: dict[str, float]) -> None:
    """Otherwise a second one would be waste."""
    assert measured["one digit"] > 1e-2


def test_weights_go_to_the_nearest_integer(measured: dict[str, float]) -> None:
    assert measured["rounding"] <= 0.5 + 1e-5
    assert measured["rows of zeros"] == 0


def test_no_second_copy_of_the_weights_stays(measured: dict[str, float]) -> None:
    assert measured["weights left beside the packed ones"] == 0


def test_vllms_own_kernel_leaves_a_parameter_for_loras(measured: dict[str, float]) -> None:
    assert measured["weights left by vLLM's kernel"] == 0
