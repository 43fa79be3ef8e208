"""Adapters for encoder-decoder models, and those that are not for the base model's kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.adapters.validation import validate
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.adapters import WEIGHTS_FILE
from softserve.schema.server import Limits
from tests.adapter_files import (
    lora_config,
    lora_tensors,
    multitask_config,
    multitask_tensors,
    soft_prompt_config,
    write_files,
)

WIDTH = 8
MODULES = {
    "encoder.block.0.layer.0.SelfAttention.q": ModuleShape("linear", WIDTH, WIDTH),
    "decoder.block.0.layer.1.EncDecAttention.v": ModuleShape("linear", WIDTH, WIDTH),
}
T5 = Architecture(frozenset({"t5"}), WIDTH, MODULES, has_encoder=True)
DECODER_ONLY = replace(T5, has_encoder=False)
SEQ_2_SEQ: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 2}


def write_lora(folder: Path, modules: dict[str, ModuleShape], task_type: str) -> Path:
    targets = [name.rpartition(".")[2] for name in modules]
    config = lora_config(target_modules=targets, task_type=task_type)
    return write_files(folder, config, lora_tensors(modules))


def write_soft_prompt(folder: Path, rows: torch.Tensor, **changes: Any) -> Path:
    config = soft_prompt_config(3, WIDTH, **changes)
    return write_files(folder, config, {"prompt_embeddings": rows})


@pytest.mark.parametrize("names", [list(MODULES), [*MODULES][:1], [*MODULES][1:]])
def test_a_lora_of_both_stacks_or_one(tmp_path: Path, names: list[str]) -> None:
    folder = write_lora(tmp_path, {name: MODULES[name] for name in names}, "SEQ_2_SEQ_LM")
    assert validate(folder, T5, Limits()).rank == 4


def test_the_encoders_rows_are_served(tmp_path: Path) -> None:
    """PEFT saves rows for both stacks, and generates with the first of them."""
    rows = torch.randn(6, WIDTH)
    folder = write_soft_prompt(tmp_path, rows, **SEQ_2_SEQ)
    version = validate(folder, T5, Limits())

    assert version.num_virtual_tokens == 3
    assert torch.equal(load_file(folder / WEIGHTS_FILE)["prompt_embeddings"], rows[:3])


def test_rows_for_one_stack_are_served_as_they_are(tmp_path: Path) -> None:
    changes = SEQ_2_SEQ | {"num_transformer_submodules": 1}
    folder = write_soft_prompt(tmp_path, torch.randn(3, WIDTH), **changes)
    assert validate(folder, T5, Limits()).num_virtual_tokens == 3


def test_too_few_rows(tmp_path: Path) -> None:
    folder = write_soft_prompt(tmp_path, torch.randn(3, WIDTH), **SEQ_2_SEQ)
    with pytest.raises(AdapterRejected, match=r"\(2 \* num_virtual_tokens, hidden_size\)"):
        validate(folder, T5, Limits())


def test_of_the_other_kind_of_model(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora", MODULES, "CAUSAL_LM")
    with pytest.raises(AdapterRejected, match="expected SEQ_2_SEQ_LM, because the base model is"):
        validate(lora, T5, Limits())
    for folder in (
        write_lora(tmp_path / "seq2seq", MODULES, "SEQ_2_SEQ_LM"),
        write_soft_prompt(tmp_path / "soft", torch.randn(6, WIDTH), **SEQ_2_SEQ),
    ):
        with pytest.raises(AdapterRejected, match="CAUSAL_LM, because the base model has no enc"):
            validate(folder, DECODER_ONLY, Limits())


def test_a_kind_that_has_no_place_there(tmp_path: Path) -> None:
    config = multitask_config(3, WIDTH, 2, 1, task_type="SEQ_2_SEQ_LM")
    folder = write_files(tmp_path, config, multitask_tensors(3, WIDTH, 2, 1))
    with pytest.raises(AdapterRejected, match="not served on an encoder-decoder model"):
        validate(folder, T5, Limits())
