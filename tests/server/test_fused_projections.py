"""A Llama's adapters on a Phi-3 of the same numbers, and a Phi-3's on that Llama."""

from typing import Any

import pytest

from tests.server.fused_projections import ADAPTERS, MODEL_TYPES
from tests.server.programs import lines_of


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By the form that is served, then by adapter: the token ids by vLLM, those by PEFT."""
    folder = tmp_path_factory.mktemp("fused")
    return dict(lines_of("tests.server.fused_projections", folder))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_adapters_give_what_peft_gives_on_the_model_that_they_are_for(
    compared: dict[str, dict[str, Any]], model_type: str
) -> None:
    """The base model, adapters of its own form and adapters of the other in one batch."""
    cases = compared[model_type]
    got = {name: by_vllm for name, (by_vllm, _) in cases.items()}
    expected = {name: by_peft for name, (_, by_peft) in cases.items()}
    assert got == expected
    assert len(cases) == 1 + len(ADAPTERS)
    # Otherwise equal answers would show nothing.
    assert len({str(answers) for answers in expected.values()}) == len(cases)
