"""Check the two files of an adapter before the engine sees them: that they fit the base model.

Both files are a stranger's. Nothing in them is run, not even a regular expression, and the tensors
are read one at a time, each only after its shape is known to be right.
"""

import hashlib
from pathlib import Path

from app.adapters.validation.config import LoRAConfig, check_base_model, read_config
from app.adapters.validation.lora import check_lora
from app.adapters.validation.soft_prompt import check_soft_prompt
from app.adapters.validation.tensors import open_weights
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture
from app.errors import AdapterRejected
from softserve.schema.adapters import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits


def validate(
    folder: Path, architecture: Architecture, limits: Limits, force: bool = False
) -> AdapterVersion:
    """Check the adapter in `folder` against the base model. It blocks: call it in a thread.

    Its files have been staged, so they are within the limits on their sizes. With `force`, the
    adapter may declare another base model; everything else is checked all the same.

    Raises:
        AdapterRejected: the first thing that is wrong, and what to do.
        AdapterTooLarge: the header of the weights is above 16 MiB.
    """
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise AdapterRejected(f"{name} is missing: send it with the other file")
    size_bytes = sum((folder / name).stat().st_size for name in ADAPTER_FILES)
    config = read_config(folder / CONFIG_FILE)
    if not force:
        check_base_model(config, architecture.names)
    with open_weights(folder / WEIGHTS_FILE) as weights:
        if isinstance(config, LoRAConfig):
            ranks = check_lora(config, weights, architecture, limits)
            return AdapterVersion(
                digest=digest_of(folder),
                kind="lora",
                size_bytes=size_bytes,
                base_model=config.base_model_name_or_path,
                rank=max(ranks.values()),
                target_modules=tuple(sorted({module.rpartition(".")[2] for module in ranks})),
            )
        check_soft_prompt(config, weights, architecture, limits)
        return AdapterVersion(
            digest=digest_of(folder),
            kind="soft_prompt",
            size_bytes=size_bytes,
            base_model=config.base_model_name_or_path,
            num_virtual_tokens=config.num_virtual_tokens,
        )


def digest_of(folder: Path) -> str:
    """The version of an adapter: the SHA-256 of its files, in hexadecimal.

    It is taken over adapter_config.json and then adapter_model.safetensors, of each: its name in
    ASCII, a zero byte, its length in bytes as 8 bytes with the highest first, and its content.
    """
    digest = hashlib.sha256()
    for name in sorted(ADAPTER_FILES):
        with (folder / name).open("rb") as file:
            digest.update(name.encode() + b"\0" + (folder / name).stat().st_size.to_bytes(8, "big"))
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
