"""What a test needs of the machine's processor."""

from typing import Any

import pytest
import torch

from app.engine.vllm.device import cpu_has_int8

needs_int8 = pytest.mark.skipif(
    not cpu_has_int8(),
    reason="this CPU has no instructions for INT8 (VNNI), and softserve refuses INT8 there",
)


# Whether oneDNN packs weights of these types: without instructions for them it does not.
IS_PACKED = {
    "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def where_it_runs(*case: Any) -> Any:
    """A test's parameters, skipped where one of them is INT8 and the processor has none."""
    return pytest.param(*case, marks=needs_int8 if "int8" in case else ())
