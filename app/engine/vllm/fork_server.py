"""The engine's processes are forked from one that has imported vLLM meanwhile.

On a CPU vLLM starts its scheduler's process anew, and that one the worker: the same import three
times, one after the other. Here a fork server of Python's imports it for both while this process
imports it for itself. The other half is `app.engine.plugin.forking`, inside vLLM.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import forkserver
from pathlib import Path

from app.engine.vllm.arguments import names_of
from app.engine.vllm.environment import loads_plugin, prepare_cpu_environment
from app.settings import Settings

PRELOADED = "app.engine.plugin.preloaded"
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def start_fork_server(settings: Settings) -> None:
    """Start it, where it is safe and of use. The environment must have been prepared.

    With a GPU, vLLM decides how its processes start. PyTorch reads at its import whether it may
    compile, which the engine's arguments can change. And an operator who says where threads compute
    must not have them where OpenMP was told before.
    """
    may_fork = _is_for_cpu() and loads_plugin() and not _operator_binds_threads()
    if not may_fork or "enforce_eager" in names_of(settings.engine_arg):
        return
    prepare_cpu_environment(eager=True)
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload([PRELOADED])
    with _openmp_variables(cores_of_worker()):
        forkserver.ensure_running()


@contextmanager
def _openmp_variables(cores: list[int]) -> Iterator[None]:
    """OpenMP reads when it is loaded, and so before a fork, which thread computes on which core."""
    told = {"OMP_NUM_THREADS": str(len(cores)), "GOMP_CPU_AFFINITY": " ".join(map(str, cores))}
    before = {name: os.environ.pop(name) for name in told if name in os.environ}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            del os.environ[name]
        os.environ.update(before)


def cores_of_worker() -> list[int]:
    """Where vLLM has a single worker compute: on x86 on the last thread of every physical core.

    Where it decides otherwise, the worker is started anew.
    """
    allowed = os.sched_getaffinity(0)
    return sorted({max(allowed & _threads_beside(cpu)) for cpu in allowed})


def _threads_beside(cpu: int) -> set[int]:
    """The hardware threads of its physical core, itself among them."""
    path = Path(SIBLINGS.format(cpu))
    if not path.exists():
        return {cpu}
    ends = [each.split("-") for each in path.read_text().strip().split(",")]
    return {cpu}.union(*(range(int(each[0]), int(each[-1]) + 1) for each in ends))


def _operator_binds_threads() -> bool:
    return os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto"


def _is_for_cpu() -> bool:
    """Whether the vLLM that is installed is built for CPUs. Asking vLLM would import it."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False
