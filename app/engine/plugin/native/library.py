"""Compiles and loads the C++ of this folder, as `torch.ops.softserve`.

    python -m app.engine.plugin.native.library      for this machine's CPU
    python -m app.engine.plugin.native.library all  for every kind that there is, as in an image

A library fits one version of PyTorch and one kind of CPU. Both are in its name, with a digest of
what it was made from: one that does not fit is never found. It registers operators and no Python
module, so a C++ compiler is all that it takes, without Python's headers.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

_SOURCES = Path(__file__).parent
_FOLDER = Path(sys.prefix) / "lib" / "softserve"
# PyTorch's own runtime for threads is GCC's, and two in one process would fight for the cores.
_COMPILER = "g++"
_FLAGS = (
    *("-std=c++20", "-O3", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden"),
    # A product and a sum are rounded alike wherever they stand in the code.
    "-ffp-contract=off",
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# By kind of CPU: PyTorch's name for its vectors, and what the compiler may use.
_X86: dict[str, tuple[str, tuple[str, ...]]] = {
    "AVX512-BF16": ("AVX512", (*_AVX512, "-mavx512bf16")),
    "AVX512": ("AVX512", _AVX512),
    "AVX2": ("AVX2", _AVX2),
}
_OTHER = "DEFAULT"


class NotCompiledError(Exception):
    """There is no library, and the message says why."""


def this_cpu() -> str:
    """The kind of this machine's CPU, by the instructions that are used of it."""
    kind: str = torch.backends.cpu.get_cpu_capability()
    if kind == "AVX512" and torch.cpu.get_capabilities().get("avx512_bf16"):
        return "AVX512-BF16"
    return kind if kind in _X86 else _OTHER


def path_for(cpu: str) -> Path:
    """Where the library for this kind of CPU is, once it is compiled."""
    sources = [path.read_text() for path in sorted(_SOURCES.glob("*.[ch]*"))]
    made_from = (*sources, torch.__version__, *_command(cpu, "operators.so"))
    digest = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    return _FOLDER / f"operators-{cpu}-{digest}.so"


def compile_for(cpu: str) -> Path:
    """Compile the library, unless it is there.

    Raises:
        NotCompiledError: there is no compiler, or it failed.
    """
    path = path_for(cpu)
    if path.exists():
        return path
    if shutil.which(_COMPILER) is None:
        raise NotCompiledError(f"{_COMPILER} is not installed")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
        made = Path(folder) / path.name
        done = subprocess.run(_command(cpu, str(made)), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.splitlines() or [f"it ended with {done.returncode}"]
            raise NotCompiledError(next((line for line in lines if "error" in line), lines[0]))
        made.rename(path)
    return path


def load() -> None:
    """Make `torch.ops.softserve` of the library for this machine.

    Raises:
        NotCompiledError: there is none, or it does not load.
    """
    path = path_for(this_cpu())
    if not path.exists():
        raise NotCompiledError(
            f"nothing is compiled for PyTorch {torch.__version__} on {this_cpu()}"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise NotCompiledError(f"{path} does not load: {error}") from error


def _command(cpu: str, made: str) -> list[str]:
    vectors, instructions = _X86.get(cpu, (_OTHER, ()))
    return [
        *(_COMPILER, *_FLAGS, *instructions),
        *(f"-DCPU_CAPABILITY={vectors}", f"-DCPU_CAPABILITY_{vectors}"),
        *(f"-I{folder}" for folder in cpp_extension.include_paths()),
        *(str(path) for path in sorted(_SOURCES.glob("*.cpp"))),
        *("-o", made),
        *(f"-L{folder}" for folder in cpp_extension.library_paths()),
        *("-ltorch_cpu", "-lc10"),
    ]


def main(which: str = "") -> None:
    cpu = this_cpu()
    for each in _X86 if which == "all" and cpu in _X86 else (cpu,):
        try:
            compile_for(each)
        except NotCompiledError as error:
            sys.exit(f"on a CPU ({each}), PyTorch's slower operators will run: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
