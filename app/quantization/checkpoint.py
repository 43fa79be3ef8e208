"""`softserve quantize`: from a model's folder to a compressed-tensors folder, whole or not at all.

The new folder is written beside its final place, under another name, and renamed when it is on the
disk.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from app.engine.model.default import EXPANDED_FROM, expanded_from
from app.engine.model.find import INDEX_FILE, check_model_folder, find_model
from app.engine.model.precision import QUANTIZED_FROM, scheme_of
from app.errors import QuantizationFailed
from app.quantization.architectures import ARCHITECTURES
from app.settings import Settings

# What a served folder holds besides weights: tokenizer, chat template, generation defaults.
COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
FORMAT = "int-quantized"
MIB = 1 << 20


def quantize_checkpoint(model: str | None, out: Path, progress: Progress) -> None:
    """Write a model, with its decoder's linear layers in W8A8, to the new folder `out`.

    Raises:
        StartError: no such model, or it is damaged.
        QuantizationFailed: the model cannot be quantized, `out` is taken, or no disk space.
    """
    name, source = find_model(Settings(model=model))
    check_model_folder(source)
    config = _config_of(source)
    with _new_folder(out, needed_bytes=_size_of_weights(source)) as folder, progress:
        # Each of these imports takes seconds: a refusal does not wait for them.
        from app.quantization.calibration import calibrate

        layers = calibrate(source, progress)
        _write_weights(source, folder, layers, progress)
        for pattern in COPIED:
            for file in source.glob(pattern):
                if file.name not in ("config.json", INDEX_FILE):
                    shutil.copyfile(file, folder / file.name)
        config |= {"quantization_config": _scheme(config), QUANTIZED_FROM: Path(name).name}
        if (expanded := expanded_from(source, config)) is not None:
            config |= {EXPANDED_FROM: expanded}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _config_of(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
    if scheme_of(config) is not None:
        raise QuantizationFailed(
            f"{source} is quantized already: name the model that it was made from"
        )
    if config.get("is_encoder_decoder"):
        raise QuantizationFailed(
            f"{source} is an encoder-decoder model, which no INT8 is made of here: serve it with "
            "--precision bf16"
        )
    unknown = set(config["architectures"]) - ARCHITECTURES
    if unknown:
        raise QuantizationFailed(
            f"{', '.join(sorted(unknown))} cannot be quantized: only "
            f"{', '.join(sorted(ARCHITECTURES))} can; softserve serve --precision int8 takes others"
        )
    return config


def _size_of_weights(source: Path) -> int:
    """An upper bound for what is written."""
    return sum(file.stat().st_size for file in source.glob("*.safetensors"))


@contextmanager
def _new_folder(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A temporary folder beside `out`, which becomes `out` if all goes well and is gone if not."""
    if out.exists():
        raise QuantizationFailed(f"{out} exists already: name a new folder with --out")
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _check_space(out.parent, needed_bytes)
            # What a killed run left behind.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                yield partial
                _flush(partial)
                partial.rename(out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise QuantizationFailed(
            f"{out} cannot be written ({error.strerror or error}): free some disk space, or name "
            "another folder with --out"
        ) from error


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = FileLock(out.with_name(f".{out.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise QuantizationFailed(f"{out} is being written by another process") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _check_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise QuantizationFailed(
            f"{folder} has {free_bytes // MIB:,} MiB left and {needed_bytes // MIB:,} MiB are "
            "needed: free some, or name another folder with --out"
        )


def _flush(folder: Path) -> None:
    """To the disk, so that a crash after the renaming cannot empty a file."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _write_weights(source: Path, folder: Path, layers: dict[str, Any], progress: Progress) -> None:
    """File by file: the quantized layers' integers and scales, everything else as it is."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    files = sorted(source.glob("*.safetensors"))
    task = progress.add_task("Writing", total=len(files))
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for file in files:
        tensors = {}
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                layer = layers.get(name.removesuffix(".weight"))
                if layer is None:
                    tensors[name] = opened.get_tensor(name)
                else:
                    tensors |= {name: layer.weight, f"{name}_scale": layer.scale}
        try:
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        # safetensors makes files that only their owner can read; a server may run as another user.
        (folder / file.name).chmod(0o644)
        weight_map |= dict.fromkeys(tensors, file.name)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
        progress.advance(task)
    if len(files) > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _scheme(config: dict[str, Any]) -> dict[str, Any]:
    """The `quantization_config` of W8A8, as the compressed-tensors library writes it."""
    from compressed_tensors.quantization import QuantizationConfig

    integers = {"num_bits": 8, "type": "int"}
    scheme = QuantizationConfig(
        config_groups={
            "group_0": {
                "targets": ["Linear"],
                "weights": integers | {"symmetric": True, "strategy": "channel", "dynamic": False},
                "input_activations": integers
                | {"symmetric": False, "strategy": "token", "dynamic": True},
            }
        },
        format=FORMAT,
        quantization_status="compressed",
        ignore=["lm_head"],
    )
    dumped: dict[str, Any] = scheme.model_dump(mode="json", exclude_none=True)
    return dumped


def quantize_progress() -> Progress:
    """Progress bars on stderr, shown from `with` on."""
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
