"""The compiled operators, for the tests of each."""

import shutil

import pytest

from app.engine.plugin.native import library

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed: nothing compiles plugin/native"
)


def compile_and_load() -> None:
    library.compile_for(library.this_cpu())
    library.load()
