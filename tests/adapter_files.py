"""Makers of adapters for all tests: PEFT's folders, written without PEFT, and packed."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from app.engine.protocol import ModuleShape
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Files = list[tuple[str, bytes]]


def write_lora(
    folder: Path,
    architecture_modules: Mapping[str, ModuleShape],
    rank: int = 4,
    *,
    alpha: float = 8,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
    base_model: str | None = None,
    **config_overrides: Any,
) -> Path:
    """A random LoRA on the modules that `target_modules` names; `scale` 0 changes nothing."""
    names = targeted(architecture_modules, target_modules)
    modules = {name: architecture_modules[name] for name in names}
    config = lora_config(rank, alpha, target_modules, base_model, **config_overrides)
    return write_files(folder, config, lora_tensors(modules, rank, seed, scale, dtype))


def write_soft_prompt(
    folder: Path,
    num_virtual_tokens: int,
    hidden_size: int,
    *,
    seed: int = 0,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
    base_model: str | None = None,
    **config_overrides: Any,
) -> Path:
    """A random soft prompt."""
    config = soft_prompt_config(num_virtual_tokens, hidden_size, base_model, **config_overrides)
    tensors = soft_prompt_tensors(num_virtual_tokens, hidden_size, seed, scale, dtype)
    return write_files(folder, config, tensors)


def write_multitask(
    folder: Path,
    num_virtual_tokens: int,
    hidden_size: int,
    num_tasks: int,
    *,
    seed: int = 0,
    base_model: str | None = None,
) -> Path:
    """A random soft prompt for each task."""
    config = multitask_config(num_virtual_tokens, hidden_size, num_tasks, base_model=base_model)
    tensors = multitask_tensors(num_virtual_tokens, hidden_size, num_tasks, seed=seed)
    return write_files(folder, config, tensors)


def targeted(modules: Mapping[str, ModuleShape], target_modules: Sequence[str]) -> list[str]:
    """The modules that a list of targets names, by PEFT's rule."""
    return [
        module
        for module in modules
        if any(module == target or module.endswith(f".{target}") for target in target_modules)
    ]


def lora_config(
    rank: int = 4,
    alpha: float = 8,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    base_model: str | None = None,
    **overrides: Any,
) -> Config:
    """What PEFT writes of a LoRA, as far as anybody reads it."""
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": list(target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    } | overrides


def soft_prompt_config(
    num_virtual_tokens: int, hidden_size: int, base_model: str | None = None, **overrides: Any
) -> Config:
    """What PEFT writes of a soft prompt, as far as anybody reads it."""
    return {
        "base_model_name_or_path": base_model,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": num_virtual_tokens,
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "token_dim": hidden_size,
    } | overrides


def lora_tensors(
    modules: Mapping[str, ModuleShape],
    rank: int = 4,
    seed: int = 0,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    tensors: Tensors = {}
    for name, shape in modules.items():
        half_a, half_b = lora_names(name, shape)
        tensors[half_a] = random(rank, shape.in_features)
        tensors[half_b] = random(shape.out_features, rank)
    return tensors


def untrained(tensors: Tensors) -> Tensors:
    """A LoRA as training begins: the matrices B are zero."""
    return {
        name: 0 * each if name.endswith(("lora_B.weight", "lora_embedding_B")) else each
        for name, each in tensors.items()
    }


def lora_names(module: str, shape: ModuleShape) -> tuple[str, str]:
    """PEFT's names of the two tensors of a module."""
    prefix = f"base_model.model.{module}"
    if shape.kind == "embedding":
        return f"{prefix}.lora_embedding_A", f"{prefix}.lora_embedding_B"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


def soft_prompt_tensors(
    num_virtual_tokens: int,
    hidden_size: int,
    seed: int = 0,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    rows = scale * torch.randn(num_virtual_tokens, hidden_size, generator=generator)
    return {"prompt_embeddings": rows.to(dtype)}


def multitask_config(
    num_virtual_tokens: int,
    hidden_size: int,
    num_tasks: int,
    num_ranks: int = 2,
    base_model: str | None = None,
    **overrides: Any,
) -> Config:
    """What PEFT writes of a multitask soft prompt, as far as anybody reads it."""
    config = soft_prompt_config(num_virtual_tokens, hidden_size, base_model)
    of_tasks = {"num_ranks": num_ranks, "num_tasks": num_tasks}
    return config | of_tasks | {"peft_type": "MULTITASK_PROMPT_TUNING"} | overrides


def multitask_tensors(
    num_virtual_tokens: int,
    hidden_size: int,
    num_tasks: int,
    num_ranks: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "prefix_task_cols": random(num_tasks, num_virtual_tokens, num_ranks),
        "prefix_task_rows": random(num_tasks, num_ranks, hidden_size),
        "prompt_embeddings": random(num_virtual_tokens, hidden_size),
    }


def cpt_config(num_virtual_tokens: int, hidden_size: int, **overrides: Any) -> Config:
    """What PEFT writes of CPT, as far as anybody reads it. Its tensor is that of a soft prompt."""
    fields = ("cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask")
    lists = {field: [1] * num_virtual_tokens for field in fields}
    config = soft_prompt_config(num_virtual_tokens, hidden_size)
    return config | lists | {"peft_type": "CPT"} | overrides


def write_files(folder: Path, config: Config, tensors: Tensors) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in as_files(config, tensors):
        (folder / name).write_bytes(content)
    return folder


def as_files(config: Config, tensors: Tensors) -> Files:
    """The two files, as an upload has them."""
    return [
        (CONFIG_FILE, json.dumps(config, indent=2).encode()),
        (WEIGHTS_FILE, save(tensors, metadata={"format": "pt"})),
    ]


def pack_tar_gz(folder: Path) -> bytes:
    """The folder's files below its name, as `tar czf` packs a folder."""
    return pack_tar(read_files(folder), "w:gz", prefix=f"{folder.name}/")


def pack_zip(folder: Path) -> bytes:
    """The folder's files at the top."""
    return pack_files_zip(read_files(folder))


def read_files(folder: Path) -> Files:
    return [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]


def pack_tar(files: Files, mode: Any = "w:gz", *, prefix: str = "") -> bytes:
    """Files of any names, none checked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files:
            member = tarfile.TarInfo(f"{prefix}{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def pack_files_zip(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Files of any names, none checked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()
