"""What is served of a type equals PEFT's own change of every weight."""

import json
import math
from collections import Counter
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
from app.engine.vllm.architecture import modules_of, without_weights
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits
from tests.peft_types import CONVERTED, TYPES, change_files, make

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
ARCHITECTURE = Architecture(frozenset({"tiny"}), 64, modules_of(without_weights(TINY)))
Tensors = dict[str, torch.Tensor]
BANK = "base_model.vblora_vector_bank"
# PEFT warns that it makes VeRA's projections again.
pytestmark = pytest.mark.filterwarnings("ignore:Specified to not")


@pytest.fixture
def base() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY, dtype=torch.float32)


def check(folder: Path, limits: Limits = LIMITS) -> AdapterVersion:
    return validate(folder, ARCHITECTURE, limits)


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


def assert_served(folder: Path, expected: Tensors) -> None:
    """That what is served adds what is expected to each weight, and nothing to others."""
    served = served_deltas(folder)
    assert served.keys() == expected.keys()
    for module, delta in expected.items():
        assert delta.abs().max() > 1e-3
        torch.testing.assert_close(served[module], delta, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_added_to_each_weight_is_what_peft_adds(
    base: Any, name: str, tmp_path: Path
) -> None:
    base = make(base, name, tmp_path).unload()
    sent = digest_of(tmp_path)
    expected = merged_deltas(base, tmp_path)

    version = check(tmp_path)

    assert_served(tmp_path, expected)
    assert version.digest == sent
    assert version.kind == "lora"
    assert any("served as the LoRA" in note for note in version.notes)


# PEFT warns of a rank of 0, and of keys that it takes for those of a LoRA.
@pytest.mark.filterwarnings("ignore:Adapter 'default'")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
# PEFT warns of a rank of 0, which AdaLoRA leaves where a module needs none, and of its own keys.
@pytest.mark.filterwarnings("ignore:Adapter 'default'")
@pytest.mark.filterwarnings("ignore:The following rank_pattern")
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

    assert version.rank == 3
    assert len(expected) == len(names) - 1
    assert_served(tmp_path, expected)


@pytest.mark.parametrize("name", CONVERTED)
def test_a_rank_above_the_limit_is_refused(base: Any, name: str, tmp_path: Path) -> None:
    make(base, name, tmp_path)

    with pytest.raises(AdapterRejected, match=r"rank .* and the limit is 1: .*--max-lora-rank"):
        check(tmp_path, Limits(max_lora_rank=1))


@pytest.mark.parametrize("name", CONVERTED)
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
        tensor = tensors[key]
        # Indices are no numbers that could be NaN.
        if not tensor.is_floating_point() and sentence == "holds NaN":
            continue
        save_file(tensors | {key: spoil(tensor.clone())}, tmp_path / WEIGHTS_FILE)
        with pytest.raises(AdapterRejected, match=sentence):
            check(tmp_path)


@pytest.mark.parametrize("name", CONVERTED)
def test_a_tensor_less_or_more_is_refused(base: Any, name: str, tmp_path: Path) -> None:
    make(base, name, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    num_parts = Counter(key.rpartition(".")[0] for key in tensors)
    # A module without any is as in the base model.
    for key in [key for key in tensors if num_parts[key.rpartition(".")[0]] > 1][:2]:
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

    change_files(tmp_path, {}, rename)
    check(tmp_path)

    assert load_file(tmp_path / WEIGHTS_FILE).keys() == expected.keys()


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens"])
def test_dora_of_the_vocabulary_is_refused(base: Any, tmp_path: Path, target: str) -> None:
    """The engine has another arithmetic for these two."""
    config = LoraConfig(task_type="CAUSAL_LM", use_dora=True, target_modules=[target])
    get_peft_model(base, config).save_pretrained(tmp_path, save_embedding_layers=False)

    with pytest.raises(AdapterRejected, match="train without it in target_modules"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("miss", {"init_weights": "bat"}, "depends on the base model's weights .*=True or"),
        ("miss", {"init_weights": "bad"}, "init_weights 'bad'; expected true, false or 'mini'"),
        ("miss", {"r": 65}, "r is 65, and module .* has 64 inputs"),
        ("miss-mini", {"mini_r": 5}, "mini_r is 5, which does not divide the 64 outputs of module"),
        ("vera", {"save_projection": False}, "by save_projection .* set it to true"),
        ("vera-by-key", {"save_projection": True}, "has no base_model.vera_A"),
        ("vera-by-key", {"projection_prng_key": 1 << 64}, "expected an integer of 64 bits"),
        ("vera-by-key", {"r": 256}, "VeRA has rank 256 and the limit is 32"),
        ("loha", {"r": 6}, r"LoHa has rank 36 .* lower r \(the rank is its square\)"),
        ("loha", {"rank_pattern": {"(?=q)q_proj": 1}}, "rank_pattern has a key that cannot be run"),
        ("loha", {"alpha_pattern": {"(?=q)q_proj": 1}}, "alpha_pattern has a key .* cannot be run"),
        ("loha", {"alpha": 1e300}, "is infinite once its tensors are multiplied"),
        ("lokr", {"decompose_factor": 16}, "LoKr has rank 64 .* decompose_factor such as 4"),
        ("lokr-whole", {"decompose_factor": 1}, "has no lokr_w2_a: save"),
        ("lokr-both", {"decompose_both": False}, "has no lokr_w1: save"),
        ("vblora", {"vector_length": 31}, "has the shape"),
        ("vblora", {"topk": 21}, "topk 21; expected at most 20"),
        ("vblora", {"num_vectors": 10**30}, "has the shape"),
        ("vblora", {"save_only_topk_weights": True}, "is not of this type"),
        ("vblora-topk", {"topk": 2}, "has the shape"),
        ("delora", {"r": 33}, "DeLoRA has rank 33 and the limit is 32"),
        ("gralora", {"r": 17}, r"GraLoRA has rank 34 .* gralora_k \* r"),
        ("gralora", {"gralora_k": 5}, "gralora_k 5, which does not divide r and the sizes"),
        ("gralora", {"hybrid_r": 1}, "has no gralora_A_general.weight"),
        ("gralora", {"hybrid_r": -1}, "hybrid_r -1; expected 0 or a positive integer"),
        ("gralora-hybrid", {"hybrid_r": 0}, "gralora_A_general.weight' is not of this type"),
        ("pvera", {"sample_at_inference": True}, "the engine adds the same every time"),
        ("pvera", {"save_projection": False}, "has base_model.pvera_A, and by save_projection"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    base: Any, name: str, config: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    make(base, name, tmp_path)
    change_files(tmp_path, config, lambda tensors: None)

    with pytest.raises(AdapterRejected, match=sentence):
        check(tmp_path)


@pytest.mark.parametrize("name", ["miss", "vera-by-key", "loha", "lokr", "vblora"])
def test_what_would_be_too_large_a_lora_is_refused_before_it_is_made(
    base: Any, name: str, tmp_path: Path
) -> None:
    make(base, name, tmp_path)

    with pytest.raises(AdapterTooLarge, match=r"is a LoRA of .* bytes and the limit is 1,000"):
        check(tmp_path, Limits(max_adapter_bytes=1000))


@pytest.mark.parametrize("name", TYPES)
def test_a_small_file_that_says_a_huge_rank_is_refused_before_it_is_made(
    base: Any, name: str, tmp_path: Path
) -> None:
    """Terabytes, if it were: the shapes of the tensors are compared first."""
    make(base, name, tmp_path)
    huge = {"r": 10**9, "init_r": 10**9, "rank_pattern": {}}
    change_files(tmp_path, huge, lambda tensors: None)

    with pytest.raises(AdapterRejected):
        check(tmp_path, Limits(max_lora_rank=1 << 60, max_adapter_bytes=1 << 80))


@pytest.mark.parametrize("name", TYPES)
def test_tensors_in_half_precision_are_multiplied_in_fp32(
    base: Any, name: str, tmp_path: Path
) -> None:
    """As PEFT does on a base model in FP32."""
    base = make(base, name, tmp_path).unload()
    change_files(
        tmp_path,
        {},
        lambda tensors: tensors.update({key: t.bfloat16() for key, t in tensors.items()}),
    )
    expected = merged_deltas(base, tmp_path)

    check(tmp_path)

    assert_served(tmp_path, expected)


def test_bone_is_miss_by_its_older_name(base: Any, tmp_path: Path) -> None:
    """As PEFT had it before, and as its own script turns it into MiSS."""
    expected = merged_deltas(make(base, "miss", tmp_path).unload(), tmp_path)

    def name_as_bone(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(".miss_", ".bone_")] = tensors.pop(name)

    change_files(tmp_path, {"peft_type": "BONE"}, name_as_bone)

    check(tmp_path)

    assert_served(tmp_path, expected)


def test_lokr_with_a_surplus_tensor_is_refused(base: Any, tmp_path: Path) -> None:
    make(base, "lokr", tmp_path)
    more = {"base_model.model.model.layers.0.self_attn.q_proj.lokr_w2": torch.zeros(16, 16)}
    change_files(tmp_path, {}, lambda tensors: tensors.update(more))

    with pytest.raises(AdapterRejected, match=r"has a lokr_w2, and by adapter_config.json"):
        check(tmp_path)


def test_vblora_whose_vectors_are_not_as_long_as_its_modules_is_refused(
    base: Any, tmp_path: Path
) -> None:
    make(base, "vblora", tmp_path)
    change_files(
        tmp_path,
        {"vector_length": 31},
        lambda tensors: tensors.update({BANK: tensors[BANK][:, :31].clone()}),
    )

    with pytest.raises(AdapterRejected, match="vector_length is 31, which does not divide"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("part", "spoil", "sentence"),
    [
        ("indices", lambda tensor: tensor.fill_(20), "does not name 3 of 20 vectors"),
        ("indices", lambda tensor: tensor.zero_(), "does not name 3 of 20 vectors"),
        ("indices", lambda tensor: tensor.float(), "is F32; expected U8, I16, I32 or I64"),
        ("weights", lambda tensor: tensor.fill_(0.6), "above 1 together"),
        ("weights", lambda tensor: tensor.fill_(-0.1), "negative"),
    ],
)
def test_the_choice_of_vblora_is_checked(
    base: Any, part: str, spoil: Any, sentence: str, tmp_path: Path
) -> None:
    make(base, "vblora-topk", tmp_path)
    name = f"base_model.model.model.layers.0.self_attn.q_proj.vblora_logits_A_topk_{part}"
    change_files(tmp_path, {}, lambda tensors: tensors.update({name: spoil(tensors[name].clone())}))

    with pytest.raises(AdapterRejected, match=sentence):
        check(tmp_path)


@pytest.mark.parametrize("name", ["vera", "vblora"])
def test_what_modules_share_is_known_below_wrappers(base: Any, name: str, tmp_path: Path) -> None:
    expected = merged_deltas(make(base, name, tmp_path).unload(), tmp_path)

    def wrap(tensors: Tensors) -> None:
        for key in list(tensors):
            tensors[f"module._orig_mod.{key}.default"] = tensors.pop(key)

    change_files(tmp_path, {}, wrap)

    check(tmp_path)

    assert_served(tmp_path, expected)
