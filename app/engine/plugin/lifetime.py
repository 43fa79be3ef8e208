"""Ends an engine process whose server was killed.

An engine process of vLLM 0.32 outlives it, and holds its memory and cores for ever.
tests/server/test_lifecycle.py has a test that fails once vLLM ends it by itself.
"""

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait

_NAME = "softserve-end-with-parent"


def end_with_parent() -> None:
    """Watch the parent process, if there is one and nobody watches yet."""
    parent = parent_process()
    if parent is None or any(thread.name == _NAME for thread in threading.enumerate()):
        return
    threading.Thread(target=_wait_and_end, args=(parent.sentinel,), name=_NAME, daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    wait([sentinel])
    # Nobody is left to hear an answer, so there is nothing to finish.
    os.kill(os.getpid(), signal.SIGKILL)
