"""The library of compiled operators: which is found, and what happens where there is none."""

from pathlib import Path

import pytest
import torch

from app.engine.plugin.native import library
from tests.unit.engine.native import needs_compiler


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    return tmp_path


def test_a_library_is_of_its_sources_one_pytorch_and_one_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.path_for("AVX2")
    assert path == library.path_for("AVX2")
    assert path != library.path_for("AVX512")
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert path != library.path_for("AVX2")
    monkeypatch.undo()
    (folder / "vectors.h").write_text("// Nothing.")
    monkeypatch.setattr(library, "_FOLDER", folder)
    monkeypatch.setattr(library, "_SOURCES", folder)
    assert path != library.path_for("AVX2")


@pytest.mark.usefixtures("folder")
def test_what_was_not_compiled_is_not_loaded() -> None:
    with pytest.raises(library.NotCompiledError, match="nothing is compiled for PyTorch"):
        library.load()


@pytest.mark.usefixtures("folder")
def test_what_is_no_library_is_not_loaded() -> None:
    library.path_for(library.this_cpu()).write_text("not a library")
    with pytest.raises(library.NotCompiledError, match="does not load"):
        library.load()


@needs_compiler
def test_what_does_not_compile_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sources = tmp_path_factory.mktemp("sources")
    (sources / "wrong.cpp").write_text("int wrong = ;")
    monkeypatch.setattr(library, "_SOURCES", sources)
    with pytest.raises(library.NotCompiledError, match="error: expected primary-expression"):
        library.compile_for(library.this_cpu())
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("folder")
def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(library.NotCompiledError, match=r"g\+\+ is not installed"):
        library.compile_for(library.this_cpu())
