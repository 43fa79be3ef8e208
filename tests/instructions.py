"""What a test needs of the machine's processor."""

from typing import Any

import pytest
import torch

from app.engine.vllm.device import cpu_has_int8

needs_int8 = pytest.mark.skipif(
    not cpu_has_int8(),
    reason="this CPU has no instructions for INT8 (VNNI), and softserve refuses INT8 there",
)


# Without them, oneDNN packs no weights of two bytes.
has_packed_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def where_it_runs(*case: Any) -> Any:
    """A test's parameters, skipped where one of them is INT8 and the processor has none."""
    return pytest.param(*case, marks=needs_int8 if "int8" in case else ())
