"""Has vLLM fork its scheduler's process from the fork server, where there is one.

vLLM 0.32 starts its processes anew on a CPU, whatever its VLLM_WORKER_MULTIPROC_METHOD says. For
its workers that has to be: OpenMP reads when it is loaded which thread computes on which core, and
vLLM tells it by their environment. The scheduler computes nothing.
"""

import multiprocessing
import os
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from vllm.v1.engine import utils


class Process(ForkServerProcess):
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


class Context(ForkServerContext):
    """multiprocessing's, with that process."""

    Process = Process


def register() -> None:
    """Have the engine's core forked."""
    if multiprocessing.get_start_method(allow_none=True) == "forkserver":
        context = Context()
        utils.get_mp_context = lambda: context
