"""The LoRAs of a batch on a CPU, against plain products; and vLLM's own, which get them wrong.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.engine.plugin.native import library

SCRIPT = Path(__file__).with_name("cpu_lora_in_vllm.py")
HAS_COMPILER = shutil.which("g++") is not None
KERNELS = [
    "torch",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            not HAS_COMPILER, reason="g++ is not installed: nothing compiles native/lora.cpp"
        ),
    ),
]
# By name: the slot of each token; -1 is the base model.
BATCHES = {
    "base alone": [-1, -1, -1],
    "one adapter": [1, 1, 1],
    "adapters": [0, 2, 1, 0],
    "adapters beside the base": [-1, 2, 0, -1, 2],
    "equally many, in slots that lie together": [1, 0, 0, 1],
    "equally many, in slots that lie apart": [2, 0, -1, 0, 2],
}


@pytest.fixture(scope="module")
def errors() -> dict[str, Any]:
    """By kernel, operation and batch: the largest difference from plain products."""
    if HAS_COMPILER:
        library.compile_for(library.this_cpu())
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(BATCHES),
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "operation", ["linear", "logits", "embedding", "after another adapter took the slot"]
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_token_gets_its_own_adapter(
    errors: dict[str, Any], kernel: str, operation: str, batch: str
) -> None:
    assert errors[kernel][operation][batch] < 1e-5


def test_what_is_compiled_is_used(errors: dict[str, Any]) -> None:
    assert ("native" in errors) == HAS_COMPILER


def test_a_layer_that_no_adapter_of_the_batch_changes_is_known(errors: dict[str, Any]) -> None:
    # The adapter in slot 1 has nothing for it.
    unchanged = {"base alone", "one adapter"}
    assert errors["changed"] == {batch: batch not in unchanged for batch in BATCHES}


def test_vllm_itself_gives_the_base_model_an_adapter(errors: dict[str, Any]) -> None:
    """Once this fails, vLLM is cured, and app/engine/plugin/cpu_lora.py is there for speed only."""
    of_vllm = errors["vLLM"]["linear"]
    assert of_vllm["adapters"] < 1e-5
    assert of_vllm["adapters beside the base"] > 0.1
