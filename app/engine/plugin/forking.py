"""Has vLLM fork its scheduler's process from the fork server, and the worker from that.

vLLM 0.32 starts its processes anew on a CPU, whatever its VLLM_WORKER_MULTIPROC_METHOD says. For
a worker that has to be where OpenMP, which reads when it is loaded which thread computes on which
core, was not told so in time. The fork server was, as far as softserve knew then
(`app.engine.vllm.fork_server`): a worker on those cores is forked.
"""

import multiprocessing
import os
from multiprocessing.context import (
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
)
from typing import Any

import torch
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.engine import utils
from vllm.v1.executor import multiproc_executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

CORES_VARIABLE = "GOMP_CPU_AFFINITY"

_get_mp_context = multiproc_executor.get_mp_context
_init_executor = MultiprocExecutor._init_executor  # noqa: SLF001


class SchedulerProcess(ForkServerProcess):
    """Has the environment of the process that starts it, as one that is started anew would."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment: dict[str, str] = {}

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.update(self._environment)
        super().run()


class SchedulerContext(ForkServerContext):
    """multiprocessing's, with that process."""

    Process = SchedulerProcess


class WorkerProcess(ForkProcess):
    """Its main thread computes on the first of the cores, as OpenMP has it when it is loaded."""

    def run(self) -> None:
        cores = [int(core) for core in os.environ[CORES_VARIABLE].split()]
        os.sched_setaffinity(0, cores[:1])
        torch.set_num_threads(len(cores))
        super().run()


class WorkerContext(ForkContext):
    """multiprocessing's, with that process."""

    Process = WorkerProcess


def register() -> None:
    """Have the engine's processes forked."""
    if multiprocessing.get_start_method(allow_none=True) == "forkserver":
        context = SchedulerContext()
        utils.get_mp_context = lambda: context
        MultiprocExecutor._init_executor = _init_executor_with_forks  # noqa: SLF001


def _init_executor_with_forks(executor: MultiprocExecutor) -> None:
    """Fork the worker where OpenMP was loaded for its cores."""
    worker_cores = OMPProcessManager(executor.vllm_config).cpu_lists
    loaded_for = os.environ.get(CORES_VARIABLE, "")
    is_prepared = [" ".join(map(str, cores)) for cores in worker_cores] == [loaded_for]
    context = WorkerContext()
    multiproc_executor.get_mp_context = (lambda: context) if is_prepared else _get_mp_context
    _init_executor(executor)
