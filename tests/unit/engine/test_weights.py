"""The weights that a CPU holds, against the checkpoint's. vLLM runs in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instructions import IS_PACKED, where_it_runs

SCRIPT = Path(__file__).with_name("weights_in_vllm.py")
# Bytes of each weight of a copy that is packed beside the plain one.
PACKED = {precision: 2 if is_packed else 0 for precision, is_packed in IS_PACKED.items()}
# Bytes of each weight: in linear layers, in the embedding, in the head, elsewhere.
HELD = {
    ("tied", "fp32"): (4, 2, 4, 4),
    ("tied", "fp16"): (2, 2, PACKED["fp16"], 2),
    ("tied", "bf16"): (2, 2, PACKED["bf16"], 2),
    ("tied", "int8"): (1, 2, 1, 4),
    ("untied", "bf16"): (2, 2, 2, 2),
    ("untied", "int8"): (1, 2, 1, 4),
    ("of FP32", "fp32"): (4, 4, 4, 4),
    ("without a head", "bf16"): (2, 2, PACKED["bf16"], 2),
}
CASES = [where_it_runs(*case) for case in HELD]
# The scales of INT8, and the cosines of positions.
SLACK = 1.02
LARGEST_ERRORS = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 1e-2, "int8": 2e-2}

Measured = dict[str, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    command = [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("models"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: Measured = json.loads(done.stdout.splitlines()[-1])
    return figures


@pytest.mark.parametrize(("model", "precision"), CASES)
def test_no_weight_is_held_that_nobody_uses(measured: Measured, model: str, precision: str) -> None:
    figures = measured[model][precision]
    in_linears, in_embedding, in_head, elsewhere = HELD[model, precision]

    held = (
        in_linears * figures["in linear layers"]
        + (in_embedding + in_head) * figures["in the embedding"]
        + elsewhere * figures["elsewhere"]
    )
    assert held <= figures["bytes"] < SLACK * held


@pytest.mark.parametrize(("model", "precision"), CASES)
def test_rows_and_logits_are_those_of_the_checkpoint(
    measured: Measured, model: str, precision: str
) -> None:
    figures = measured[model][precision]

    assert figures["error of rows"] == 0
    assert figures["error of logits"] < LARGEST_ERRORS[precision]


@pytest.mark.skipif(not IS_PACKED["bf16"], reason="this CPU packs no weights in BF16")
@pytest.mark.parametrize("model", ["tied", "untied"])
def test_vllm_alone_holds_two_bytes_of_each_word_for_nobody(measured: Measured, model: str) -> None:
    """Once it fails, app/engine/plugin/embeddings.py may be left out for this."""
    ours, vllms = (measured[model][precision] for precision in ("bf16", "bf16 of vLLM alone"))

    assert vllms["bytes"] >= ours["bytes"] + 2 * ours["in the embedding"]
