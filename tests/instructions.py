"""What a test needs of the machine's processor."""

import pytest
import torch

FEATURES = torch.cpu.get_capabilities()

needs_int8 = pytest.mark.skipif(
    FEATURES.get("architecture") == "x86_64"
    and not (FEATURES.get("avx512_vnni") or FEATURES.get("avx_vnni")),
    reason="this CPU has no instructions for INT8 (VNNI), and softserve refuses INT8 there",
)
