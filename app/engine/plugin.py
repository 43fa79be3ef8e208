"""softserve's plugin for vLLM, which loads it in every process of the engine.

An engine process of vLLM 0.32 outlives a server that is killed, and holds its memory and cores for
ever. tests/server/test_lifecycle.py has a test that fails once vLLM ends it by itself.
"""

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait


def register() -> None:
    """The entry point `softserve` of `vllm.general_plugins`; it may be called more than once."""
    parent = parent_process()
    if parent is None or any(thread.name == _NAME for thread in threading.enumerate()):
        return
    threading.Thread(
        target=_end_with_parent, args=(parent.sentinel,), name=_NAME, daemon=True
    ).start()


_NAME = "softserve-end-with-parent"


def _end_with_parent(sentinel: int) -> None:
    wait([sentinel])
    # Nobody is left to hear an answer, so there is nothing to finish.
    os.kill(os.getpid(), signal.SIGKILL)
