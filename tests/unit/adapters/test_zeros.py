"""Whether a LoRA's tensors can change anything at all."""

from pathlib import Path

import pytest
import torch

from app.adapters.validation.zeros import changes_nothing
from app.engine.protocol import ModuleShape
from tests.adapter_files import (
    Tensors,
    lora_config,
    lora_tensors,
    soft_prompt_config,
    soft_prompt_tensors,
    untrained,
    write_files,
)

MODULES = {
    "model.embed_tokens": ModuleShape("embedding", 32, 8),
    "model.layers.0.q_proj": ModuleShape("linear", 8, 8),
    "model.layers.0.v_proj": ModuleShape("linear", 8, 4),
}
TRAINED = lora_tensors(MODULES)
SOME_B = "base_model.model.model.layers.0.v_proj.lora_B.weight"


def zero_a(tensors: Tensors) -> Tensors:
    """PEFT begins so with the matrices A of an embedding."""
    return {name: 0 * each if "_A" in name else each for name, each in tensors.items()}


def mixed(tensors: Tensors) -> Tensors:
    """Of each pair one half is zero."""
    zeros = ("embedding_A", "lora_B.weight")
    return {name: 0 * each if name.endswith(zeros) else each for name, each in tensors.items()}


@pytest.mark.parametrize("tensors", [untrained(TRAINED) | mixed(TRAINED), zero_a(TRAINED)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_half_of_each_pair_is_enough(
    tmp_path: Path, tensors: Tensors, dtype: torch.dtype
) -> None:
    cast = {name: each.to(dtype) for name, each in tensors.items()}
    assert changes_nothing(write_files(tmp_path, lora_config(), cast))


def test_a_negative_zero_is_one(tmp_path: Path) -> None:
    negative = {name: -each for name, each in untrained(TRAINED).items()}
    assert changes_nothing(write_files(tmp_path, lora_config(), negative))


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param(TRAINED, id="trained"),
        pytest.param(untrained(TRAINED) | {SOME_B: TRAINED[SOME_B]}, id="one module"),
        pytest.param(untrained(TRAINED) | {"more": torch.zeros(1)}, id="something else"),
        pytest.param({SOME_B: torch.zeros(4, 4)}, id="half a pair"),
    ],
)
def test_what_may_change_something(tmp_path: Path, tensors: Tensors) -> None:
    assert not changes_nothing(write_files(tmp_path, lora_config(), tensors))


def test_a_soft_prompt_changes_something_even_where_it_is_zero(tmp_path: Path) -> None:
    zero = soft_prompt_tensors(4, 8, scale=0)
    assert not changes_nothing(write_files(tmp_path, soft_prompt_config(4, 8), zero))
