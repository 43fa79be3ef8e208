"""Encoder-decoder models by vLLM and by transformers and PEFT, on tiny random ones."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.server.encoder_decoder import RUNS, cases
from tests.server.requests import share_before_divergence


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By run: the token ids by vLLM and those by transformers of each case, and the preemptions."""
    folder = tmp_path_factory.mktemp("encoder-decoder")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.server.encoder_decoder", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("[")]
    return {name: rest for name, *rest in lines}


@pytest.mark.parametrize("run", RUNS)
def test_tokens_are_those_of_transformers_and_peft(compared: dict[str, Any], run: str) -> None:
    """Prompts of many lengths with LoRAs, soft prompts, both and neither, in one batch."""
    by_case, _ = compared[run]
    got = {case: by_vllm for case, (by_vllm, _) in by_case.items()}
    expected = {case: by_transformers for case, (_, by_transformers) in by_case.items()}

    if run.endswith(("bf16", "fp16")):
        # Random models have close seconds.
        assert share_before_divergence(got.values(), expected.values()) >= 0.6
    else:
        assert got == expected
    assert len(got) == len(cases())
    # Two prompts that end alike could have been taken for each other.
    assert len({tuple(token_ids) for token_ids in expected.values()}) >= len(expected) - 1


def test_requests_were_preempted(compared: dict[str, Any]) -> None:
    """Without app/engine/plugin/seq2seq/encoder_order.py they get each other's inputs then."""
    _, num_preemptions = compared["flan-t5, preempted"]

    assert num_preemptions > 5
