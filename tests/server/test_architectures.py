"""Adapters on other architectures than the default model's, on tiny random models."""

import ast
from typing import Any

import pytest

from app.settings import Precision
from tests.instructions import where_it_runs
from tests.server.architectures import RUNS, cases_of
from tests.server.programs import lines_of
from tests.server.requests import share_before_divergence

NUM_PROMPTS = 2
CASES = [where_it_runs(*run) for run in RUNS]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By name and precision, then by case: the token ids by vLLM, those by transformers.

    And by `NAME in PRECISION: unadapted` two lists.
    """
    folder = tmp_path_factory.mktemp("architectures")
    return dict(lines_of("tests.server.architectures", folder))


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_adapters_give_what_peft_gives(
    compared: dict[str, Any], name: str, precision: Precision
) -> None:
    """Base, LoRA, soft prompt and both in one batch.

    In INT8 the reference is the model with the weights that the integers stand for.
    """
    cases = compared[f"{name} in {precision}"]
    got = {case: by_vllm for case, (by_vllm, _) in cases.items()}
    expected = {case: by_transformers for case, (_, by_transformers) in cases.items()}

    assert len(cases) == len(cases_of(name))
    if precision == "fp32":
        assert got == expected
    else:
        # Activations are rounded to about 16 bits, and random models have close seconds.
        assert share_before_divergence(got.values(), expected.values()) >= 0.8
    assert len(set(texts_by_adapters(expected).values())) == len(cases) / NUM_PROMPTS


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_where_there_is_room_for_loras_is_known_without_loading(
    compared: dict[str, Any], name: str, precision: Precision
) -> None:
    """`softserve adapter check` says what a server would."""
    by_engine, unloaded = compared[f"{name} in {precision}: unadapted"]

    assert unloaded == by_engine


def texts_by_adapters(expected: dict[str, Any]) -> dict[tuple[bool, bool], str]:
    """With a LoRA or not, with a soft prompt or not: the token ids of all prompts."""
    texts: dict[tuple[bool, bool], str] = {}
    for case, token_ids in sorted(expected.items()):
        _, with_lora, with_soft_prompt = ast.literal_eval(case)
        key = with_lora, with_soft_prompt
        texts[key] = texts.get(key, "") + str(token_ids)
    return texts
