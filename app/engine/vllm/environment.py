"""Environment variables that vLLM and PyTorch read at import: set them before importing either.

A variable that the operator has set already is kept.
"""

import os
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

from app.engine.vllm.soft_prompts import MAX_VIRTUAL_TOKENS_VARIABLE
from app.settings import Settings

# The entry point in pyproject.toml.
PLUGIN = "softserve"


def prepare_environment(settings: Settings) -> None:
    """Set what must be in place before `import vllm` and before its processes start."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "DEBUG" if settings.log_level == "debug" else "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        # Else calls of tools are kept to a form of xgrammar's, which the engine's backend is not.
        "VLLM_ENFORCE_STRICT_TOOL_CALLING": "0",
        # softserve has a limit of its own.
        "VLLM_MAX_STOP_STRINGS": str(settings.max_stop_strings),
        # A cache of ours, rather than files in the user's home.
        "VLLM_CACHE_ROOT": str(settings.cache_dir / "vllm"),
        # Measured on 2 cores: 165 tokens/s with the default of one reserved core, 249 with none.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Start-up chatter that an operator can do nothing about.
        "TORCH_LOGS": "-torch._library.triton",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ[MAX_VIRTUAL_TOKENS_VARIABLE] = str(settings.max_virtual_tokens)


def loads_plugin() -> bool:
    """Whether vLLM loads softserve's plugin: an operator's VLLM_PLUGINS may leave it out."""
    allowed = os.environ.get("VLLM_PLUGINS")
    return allowed is None or PLUGIN in allowed.split(",")


def prepare_cpu_environment(*, eager: bool) -> None:
    """What a CPU engine needs besides, once it is known that there is no GPU."""
    # Eager mode leaves a few functions (the rank of a logprob, for one) to be compiled by the
    # first request that needs them: 16 s in which no other request moves, and no compiler may be
    # installed at all.
    if eager:
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    preloaded = os.environ.get("LD_PRELOAD", "")
    libraries = {"tcmalloc": _find_tcmalloc, "libgomp": _find_libgomp}
    missing = [find() for name, find in libraries.items() if name not in preloaded]
    if any(missing):
        os.environ["LD_PRELOAD"] = ":".join(filter(None, [*missing, preloaded]))


def _find_tcmalloc() -> str | None:
    """The path of tcmalloc, which makes the engine 3 to 20 % faster; None if not installed."""
    name = find_library("tcmalloc_minimal")
    if name is None:
        return None
    folders = [*Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib")]
    return next((str(path) for folder in folders if (path := folder / name).exists()), None)


def _find_libgomp() -> str | None:
    """The path of torch's own: only if it comes first are all bound cores used, as vLLM knows.

    vLLM finds it once it has been imported, too late for processes that are forked.
    """
    torch = find_spec("torch")
    folders = torch.submodule_search_locations if torch else None
    found = [path for folder in folders or () for path in Path(folder, "lib").glob("libgomp*.so*")]
    return str(found[0]) if found else None
