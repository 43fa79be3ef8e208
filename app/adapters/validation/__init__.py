"""Check the two files of an adapter before the engine sees them: that they fit the base model.

Both files are a stranger's. Nothing in them is run but regular expressions, in linear time, and the
tensors are read one at a time, each only after its shape is known to be right. Where the engine
would not read them as PEFT does, they are written again as what PEFT makes of them, and noted.
"""

import hashlib
from pathlib import Path

from app.adapters.validation.base_copies import notes_on_copies, without_base_copies
from app.adapters.validation.base_model import check_base_model
from app.adapters.validation.checked import Checked
from app.adapters.validation.config import (
    AdapterConfig,
    LoRAConfig,
    SoftPromptConfig,
    TrainedTokensConfig,
    starts_with_bom,
)
from app.adapters.validation.conversion import convert
from app.adapters.validation.conversion.base import ConvertedConfig
from app.adapters.validation.fused import as_trained
from app.adapters.validation.lora import check_lora
from app.adapters.validation.multitask import MultitaskConfig, check_multitask, check_task
from app.adapters.validation.names import Tensors, named_as_peft_does
from app.adapters.validation.peft_types import read_config
from app.adapters.validation.served import write_config, write_weights
from app.adapters.validation.soft_prompt import check_soft_prompt
from app.adapters.validation.stacks import check_stacks
from app.adapters.validation.tensors import open_weights
from app.adapters.validation.trained_tokens import check_trained_tokens
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture
from app.errors import AdapterRejected
from softserve.schema.adapters import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits


def validate(
    folder: Path,
    architecture: Architecture,
    limits: Limits,
    force: bool = False,
    task: int | None = None,
) -> AdapterVersion:
    """Check the adapter in `folder` against the base model. It blocks: call it in a thread.

    Its files have been staged, so they are within the limits on their sizes. With `force`, the
    adapter may declare another base model; everything else is checked all the same. With `task`,
    that one of a multitask soft prompt is all that the version has.

    Raises:
        AdapterRejected: the first thing that is wrong, and what to do.
        AdapterTooLarge: the header of the weights is above 16 MiB, or what is served of them above
            the limit on an adapter's files.
    """
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise AdapterRejected(f"{name} is missing: send it with the other file")
    # Of the files as they were sent: what is served is made from them.
    digest = digest_of(folder, task)
    config = read_config(folder / CONFIG_FILE)
    check_stacks(config, architecture)
    check_task(config, task)
    declared = config.base_model_name_or_path
    base_notes = () if force else tuple(check_base_model(declared, architecture.names))
    with open_weights(folder / WEIGHTS_FILE) as weights:
        named = named_as_peft_does(weights, as_trained(weights.keys(), architecture))
        tensors, copies = without_base_copies(named, architecture)
        checked = _check(config, tensors, architecture, limits, task)
        if checked.config_changes or starts_with_bom(folder / CONFIG_FILE):
            write_config(folder, checked.config_changes)
        if checked.weights is not None:
            write_weights(folder, checked.weights)
        elif copies or tensors.are_renamed:
            write_weights(folder, {name: tensors.get_tensor(name) for name in tensors.names})
    return AdapterVersion(
        digest=digest,
        size_bytes=sum((folder / name).stat().st_size for name in ADAPTER_FILES),
        base_model=declared,
        notes=(*base_notes, *tensors.notes, *notes_on_copies(copies), *checked.notes),
        **checked.facts,
    )


def _check(
    config: AdapterConfig,
    tensors: Tensors,
    architecture: Architecture,
    limits: Limits,
    task: int | None,
) -> Checked:
    match config:
        case LoRAConfig():
            return check_lora(config, tensors, architecture, limits)
        case TrainedTokensConfig():
            return check_trained_tokens(config, tensors, architecture, limits)
        case MultitaskConfig():
            return check_multitask(config, tensors, architecture, limits, task)
        case SoftPromptConfig():
            return check_soft_prompt(config, tensors, architecture, limits)
        case ConvertedConfig():
            return convert(config, tensors, architecture, limits)
    raise AssertionError(f"nothing checks a {type(config).__name__}")


def digest_of(folder: Path, task: int | None = None) -> str:
    """The version of an adapter: the SHA-256 of its files, in hexadecimal.

    It is taken over adapter_config.json and then adapter_model.safetensors, of each: its name in
    ASCII, a zero byte, its length in bytes as 8 bytes with the highest first, and its content.
    A task that is named with the files counts as a third one, `task`, which has its digits.
    """
    digest = hashlib.sha256()
    for name in sorted(ADAPTER_FILES):
        with (folder / name).open("rb") as file:
            digest.update(_heading(name, (folder / name).stat().st_size))
            hashlib.file_digest(file, lambda: digest)
    if task is not None:
        digits = str(task).encode()
        digest.update(_heading("task", len(digits)) + digits)
    return digest.hexdigest()


def _heading(name: str, num_bytes: int) -> bytes:
    return name.encode() + b"\0" + num_bytes.to_bytes(8, "big")
