"""The LoRAs of a batch on a CPU, against plain products; and vLLM's own, which get them wrong.

vLLM takes long to import and changes the process that imports it: it runs in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("cpu_lora_in_vllm.py")
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
    """By class, operation and batch: the largest difference from plain products."""
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
def test_every_token_gets_its_own_adapter(
    errors: dict[str, Any], operation: str, batch: str
) -> None:
    assert errors["GroupedPunicaWrapper"][operation][batch] < 1e-5


def test_vllm_itself_gives_the_base_model_an_adapter(errors: dict[str, Any]) -> None:
    """Once this fails, vLLM is cured, and app/engine/plugin/cpu_lora.py is there for speed only."""
    of_vllm = errors["PunicaWrapperCPU"]["linear"]
    assert of_vllm["adapters"] < 1e-5
    assert of_vllm["adapters beside the base"] > 0.1
