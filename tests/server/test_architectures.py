"""Adapters on other architectures than the default model's, on tiny random models."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.server.architectures import ARCHITECTURES


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By model_type, then by case: the token ids by vLLM, and those by transformers."""
    folder = tmp_path_factory.mktemp("architectures")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.server.architectures", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(line) for line in finished.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_adapters_give_what_peft_gives(
    compared: dict[str, dict[str, Any]], model_type: str
) -> None:
    """Base, LoRA, soft prompt and both in one batch; no LoRA where vLLM has none."""
    cases = compared[model_type]
    got = {case: by_vllm for case, (by_vllm, _) in cases.items()}
    expected = {case: by_transformers for case, (_, by_transformers) in cases.items()}

    assert len(cases) == (8 if ARCHITECTURES[model_type][1] else 4)
    assert got == expected
    assert len({tuple(token_ids) for token_ids in expected.values()}) == len(cases)
