"""What is served of a type equals PEFT's own change of every weight."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from app.adapters.validation import digest_of, validate
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture
from app.engine.vllm.architecture import modules_of
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits
from tests.peft_types import TYPES, make

LIMITS = Limits()
TINY = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=500,
    tie_word_embeddings=False,
)
ARCHITECTURE = Architecture(frozenset({"tiny"}), 64, modules_of(TINY))
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def base() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY, dtype=torch.float32)


def check(folder: Path, limits: Limits = LIMITS) -> AdapterVersion:
    return validate(folder, ARCHITECTURE, limits)


def change(folder: Path, config: dict[str, Any], tensors: Callable[[Tensors], object]) -> None:
    """Change what lies in a folder."""
    fields = json.loads((folder / CONFIG_FILE).read_bytes())
    (folder / CONFIG_FILE).write_text(json.dumps(fields | config))
    loaded = load_file(folder / WEIGHTS_FILE)
    tensors(loaded)
    save_file(loaded, folder / WEIGHTS_FILE)


def served_deltas(folder: Path) -> Tensors:
    """What vLLM adds to each module's weight, from the files that it is given."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    assert config["peft_type"] == "LORA"
    tensors = load_file(folder / WEIGHTS_FILE)
    modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    scaling = config["lora_alpha"] / config["r"]
    return {module: scaling * _product(tensors, module) for module in modules}


def _product(tensors: Tensors, module: str) -> torch.Tensor:
    prefix = f"base_model.model.{module}"
    if f"{prefix}.lora_A.weight" in tensors:
        return tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
    return (tensors[f"{prefix}.lora_embedding_B"] @ tensors[f"{prefix}.lora_embedding_A"]).T


def merged_deltas(base: Any, folder: Path) -> Tensors:
    """What PEFT changes in each weight when it merges the adapter that it loads from `folder`."""
    before = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    deltas = {
        name.removesuffix(".weight"): weight.detach() - before[name]
        for name, weight in merged.named_parameters()
    }
    return {name: delta for name, delta in deltas.items() if delta.any()}


@pytest.mark.parametrize("name", TYPES)
def test_what_is_added_to_each_weight_is_what_peft_adds(
    base: Any, name: str, tmp_path: Path
) -> None:
    base = make(base, name, tmp_path).unload()
    sent = digest_of(tmp_path)
    expected = merged_deltas(base, tmp_path)

    version = check(tmp_path)

    served = served_deltas(tmp_path)
    assert served.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(served[module], delta, atol=1e-5, rtol=1e-4)
    assert version.digest == sent
    assert version.kind == "lora"
    assert any("served as the LoRA" in note for note in version.notes)


# PEFT warns of a rank of 0, and of keys that it takes for those of a LoRA.
@pytest.mark.filterwarnings("ignore:Adapter 'default'")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_adalora_has_the_ranks_that_its_pattern_leaves(base: Any, tmp_path: Path) -> None:
    """As PEFT saves it after training: masked ranks are gone, of one module all."""
    model = make(base, "adalora", tmp_path)
    names = [name for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    kept = [True, False, True, False, False, True]
    pattern = dict.fromkeys(names, kept) | {names[0]: [False] * 6}
    model.peft_config["default"].rank_pattern = pattern
    model.save_pretrained(tmp_path)
    expected = merged_deltas(model.unload(), tmp_path)

    version = check(tmp_path)

    served = served_deltas(tmp_path)
    assert version.rank == 3
    assert len(served) == len(names) - 1
    assert served.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(served[module], delta, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TYPES)
def test_a_rank_above_the_limit_is_refused(base: Any, name: str, tmp_path: Path) -> None:
    make(base, name, tmp_path)

    with pytest.raises(AdapterRejected, match=r"rank .* and the limit is 1: .*--max-lora-rank"):
        check(tmp_path, Limits(max_lora_rank=1))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda tensor: tensor.fill_(math.nan), "holds NaN"),
        (lambda tensor: tensor[..., :-1].clone(), "has the shape"),
        (lambda tensor: tensor[None].clone(), "has the shape"),
        (lambda tensor: tensor.double(), "is F64"),
    ],
    ids=["nan", "narrow", "deep", "double"],
)
def test_every_tensor_is_checked(
    base: Any, name: str, tmp_path: Path, spoil: Any, sentence: str
) -> None:
    """Each tensor of one module, and each that all share."""
    make(base, name, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    module = next(key.rpartition(".")[0] for key in tensors if "layers.0" in key)
    spoiled = [key for key in tensors if key.startswith(module) or "layers" not in key]
    for key in spoiled:
        save_file(tensors | {key: spoil(tensors[key].clone())}, tmp_path / WEIGHTS_FILE)
        with pytest.raises(AdapterRejected, match=sentence):
            check(tmp_path)


@pytest.mark.parametrize("name", TYPES)
def test_a_tensor_less_or_more_is_refused(base: Any, name: str, tmp_path: Path) -> None:
    make(base, name, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    for key in list(tensors)[:2]:
        save_file({k: t for k, t in tensors.items() if k != key}, tmp_path / WEIGHTS_FILE)
        with pytest.raises(AdapterRejected):
            check(tmp_path)
    more = {"base_model.model.model.layers.0.mlp.up_proj.stranger": torch.zeros(2, 2)}
    save_file(tensors | more, tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterRejected, match="stranger"):
        check(tmp_path)


def test_a_dora_is_served_as_it_is(base: Any, tmp_path: Path) -> None:
    """But for the field that would have vLLM refuse it."""
    make(base, "dora", tmp_path)
    sent = (tmp_path / WEIGHTS_FILE).read_bytes()

    version = check(tmp_path)

    assert version.rank == 6
    assert version.notes == ()
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == sent
    assert json.loads((tmp_path / CONFIG_FILE).read_bytes())["use_dora"] is False


@pytest.mark.parametrize("ending", ["", ".default", ".weight", ".default.weight"])
def test_a_magnitude_by_other_names(base: Any, tmp_path: Path, ending: str) -> None:
    make(base, "dora", tmp_path)
    magnitude = "lora_magnitude_vector"
    expected = load_file(tmp_path / WEIGHTS_FILE)

    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(magnitude)]:
            tensors[f"{name}{ending}"] = tensors.pop(name)

    change(tmp_path, {}, rename)
    check(tmp_path)

    assert load_file(tmp_path / WEIGHTS_FILE).keys() == expected.keys()


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens"])
def test_dora_of_the_vocabulary_is_refused(base: Any, tmp_path: Path, target: str) -> None:
    """The engine has another arithmetic for these two."""
    config = LoraConfig(task_type="CAUSAL_LM", use_dora=True, target_modules=[target])
    get_peft_model(base, config).save_pretrained(tmp_path, save_embedding_layers=False)

    with pytest.raises(AdapterRejected, match="train without it in target_modules"):
        check(tmp_path)
