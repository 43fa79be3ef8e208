"""The device that vLLM runs on in this process."""

from app.engine.model.precision import Device


def this_device() -> Device:
    """What it is, and what it has instructions for."""
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return Device(
            is_cpu=False, has_bf16=current_platform.has_device_capability(80), has_int8=True
        )
    features = torch.cpu.get_capabilities()
    return Device(
        is_cpu=True,
        has_bf16=bool(
            features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16")
        ),
        has_int8=cpu_has_int8(),
    )


def cpu_has_int8() -> bool:
    """Whether this CPU has instructions for sums of 8-bit products."""
    import torch

    features = torch.cpu.get_capabilities()
    is_x86 = features.get("architecture") == "x86_64"
    return bool(features.get("avx512_vnni") or features.get("avx_vnni") or not is_x86)
