"""What the fork server has imported before it forks (`app.engine.vllm.fork_server`)."""

import gc
import os
import sys
from importlib import import_module

import setproctitle

MODULES = [
    "vllm",
    "vllm.config",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
]

# vLLM would take it for the operator's wish. OpenMP has read it.
del os.environ["OMP_NUM_THREADS"]

_server = os.getppid()
for _module in MODULES:
    import_module(_module)
    if os.getppid() != _server:
        sys.exit()

# Each OpenMP that was loaded has bound this thread to the first of a worker's cores.
os.sched_setaffinity(0, os.sched_getaffinity(_server))

# After a fork the place of the title can no longer be found, once the environment has changed.
setproctitle.setproctitle("softserve: fork server")

# A collection writes to every object that it looks at, and so copies the pages that forks share.
gc.collect()
gc.freeze()
