"""What is taken for the best type of weights, by what a CPU can do."""

from typing import Any

import pytest
import torch

from app.engine.vllm.device import this_device

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("features", "best"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_the_best_type(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, Any], best: str
) -> None:
    platforms = pytest.importorskip("vllm.platforms")
    if not platforms.current_platform.is_cpu():
        pytest.skip("it is about CPUs")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)

    assert this_device().best == best
