"""Adapters on other architectures than the default model's, on tiny random models."""

import ast
import json
import subprocess
import sys
from typing import Any

import pytest

from app.settings import Precision
from tests.server.architectures import ARCHITECTURES, RUNS
from tests.server.requests import share_before_divergence

NUM_PROMPTS = 2


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By model_type and precision, then by case: the token ids by vLLM, those by transformers."""
    folder = tmp_path_factory.mktemp("architectures")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.server.architectures", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(line) for line in finished.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize(("model_type", "precision"), RUNS)
def test_adapters_give_what_peft_gives(
    compared: dict[str, dict[str, Any]], model_type: str, precision: Precision
) -> None:
    """Base, LoRA, soft prompt and both in one batch; no LoRA where vLLM has none.

    In INT8 the reference is the model with the weights that the integers stand for.
    """
    cases = compared[f"{model_type} in {precision}"]
    got = {case: by_vllm for case, (by_vllm, _) in cases.items()}
    expected = {case: by_transformers for case, (_, by_transformers) in cases.items()}

    assert len(cases) == (8 if ARCHITECTURES[model_type][1] else 4)
    if precision == "fp32":
        assert got == expected
    else:
        # Activations are rounded to about 16 bits, and random models have close seconds.
        assert share_before_divergence(got.values(), expected.values()) >= 0.8
    assert len(set(texts_by_adapters(expected).values())) == len(cases) / NUM_PROMPTS


def texts_by_adapters(expected: dict[str, Any]) -> dict[tuple[bool, bool], str]:
    """With a LoRA or not, with a soft prompt or not: the token ids of all prompts."""
    texts: dict[tuple[bool, bool], str] = {}
    for case, token_ids in sorted(expected.items()):
        _, with_lora, with_soft_prompt = ast.literal_eval(case)
        key = with_lora, with_soft_prompt
        texts[key] = texts.get(key, "") + str(token_ids)
    return texts
