"""What a test needs of the machine's processor."""

import pytest

from app.engine.vllm.device import cpu_has_int8

needs_int8 = pytest.mark.skipif(
    not cpu_has_int8(),
    reason="this CPU has no instructions for INT8 (VNNI), and softserve refuses INT8 there",
)
