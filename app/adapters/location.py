"""Which folder of several is the adapter: one rule for archives, uploads, sources and the watched.

Training leaves more than an adapter: checkpoints below it, which are adapters too, and PEFT puts a
named adapter one folder deeper. The one on top is meant; where none is, the only one below.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from app.errors import AdapterRejected
from softserve.schema.adapters import ADAPTER_FILES, WEIGHTS_FILE

MAX_DEPTH = 3
MAX_FOLDERS = 1000
MAX_NAMED = 5
PEFT_PICKLE = "adapter_model.bin"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def adapter_folder(folder: Path) -> Path:
    """The folder with the adapter's files: `folder`, or the only one below it that has any.

    Without any, it is `folder`. Links to folders are not followed.

    Raises:
        AdapterRejected: there are several, and none is above the others.
    """
    level = [folder]
    for _ in range(MAX_DEPTH + 1):
        found = [each for each in level if has_adapter_files(each)]
        if len(found) > 1:
            raise several_adapters(f"{each.relative_to(folder)}" for each in found)
        if found:
            return found[0]
        level = list(islice((below for each in level for below in _subfolders(each)), MAX_FOLDERS))
    return folder


def has_adapter_files(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in ADAPTER_FILES)


def several_adapters(folders: Iterable[str]) -> AdapterRejected:
    named = sorted(map(repr, folders))
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return AdapterRejected(
        f"adapter files lie in {' and in '.join(named[:MAX_NAMED])}{more}: give the folder of one "
        "adapter"
    )


def is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLES)


def likeliest_pickle(names: Sequence[str]) -> str:
    """Of several pickles, the one that is the adapter: training leaves more of them."""
    return PEFT_PICKLE if PEFT_PICKLE in names else names[0]


def not_read(pickle: str) -> str:
    """Why a pickle is not read, and what to do; one by PEFT's name can be converted."""
    name = pickle if pickle.isprintable() and len(pickle) <= 64 else PEFT_PICKLE
    return (
        f"{name} is a pickle, which can run any code, and was not read: save the adapter with "
        f"safe_serialization=True, or convert it to {WEIGHTS_FILE} with safetensors.torch.save_file"
        f"(torch.load('{name}', weights_only=True), '{WEIGHTS_FILE}')"
    )


def _subfolders(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        names = [
            each.name
            for each in entries
            if not each.name.startswith(".") and each.is_dir(follow_symlinks=False)
        ]
    return (folder / name for name in sorted(names))
