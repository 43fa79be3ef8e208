"""Tokens that an adapter has rows of its own for are served as PEFT runs them."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from app.adapters.validation import digest_of, validate
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture
from app.engine.vllm.architecture import modules_of, tied_in
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits
from tests.peft_types import TOKENS, WITH_TOKENS, change_files, make
from tests.unit.adapters.test_conversion import Tensors, served_deltas

LIMITS = Limits()
EMBEDDING = "base_model.model.model.embed_tokens"
ROWS = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
OWN_ROWS = f"{EMBEDDING}.trainable_tokens_delta"
# PEFT advises who trains.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
IS_TIED = pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])


def config_of(is_tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        tie_word_embeddings=is_tied,
    )


def tiny(folder: Path, is_tied: bool) -> tuple[Any, Architecture]:
    """A model, and what the server knows of it."""
    torch.manual_seed(0)
    config = config_of(is_tied)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    architecture = Architecture(
        frozenset({"tiny"}), 64, modules_of(model), folder=folder, tied=tied_in(model)
    )
    return model, architecture


def with_deltas(base: Any, deltas: Tensors) -> Any:
    """The base model as the engine runs it with a LoRA: the head by itself."""
    model = deepcopy(base)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for module, delta in deltas.items():
        model.get_submodule(module).weight.data += delta
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([[5, *TOKENS, 77, 300]])).logits
    return found


@IS_TIED
@pytest.mark.parametrize("name", WITH_TOKENS)
def test_logits_are_those_of_peft(name: str, is_tied: bool, tmp_path: Path) -> None:
    base, architecture = tiny(tmp_path / "base", is_tied)
    sent = tmp_path / "sent"
    untouched = deepcopy(base)
    make(base, name, sent)
    digest = digest_of(sent)
    base = deepcopy(untouched)
    expected = logits(PeftModel.from_pretrained(base, sent))

    version = validate(sent, architecture, LIMITS)

    served = with_deltas(untouched, served_deltas(sent))
    torch.testing.assert_close(logits(served), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(untouched), expected, atol=0.01)
    assert version.digest == digest
    assert version.trained_tokens == tuple(sorted(TOKENS))
    assert "4 tokens are trained: served as a LoRA of" in version.notes[0]


def saved(tmp_path: Path, config: Any, is_tied: bool = True) -> tuple[Path, Architecture]:
    """An adapter that PEFT made and nobody trained."""
    base, architecture = tiny(tmp_path / "base", is_tied)
    sent = tmp_path / "sent"
    get_peft_model(base, config).save_pretrained(sent)
    return sent, architecture


def lora(indices: Any, **options: Any) -> LoraConfig:
    options = {"r": 4, "target_modules": ["q_proj"]} | options
    return LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=indices, **options)


def own_type(**options: Any) -> TrainableTokensConfig:
    return TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[1, 5], **options)


def same(tensors: Tensors) -> None:
    """Change nothing."""


def test_ranks_add_up_where_a_head_has_both(tmp_path: Path) -> None:
    sent, architecture = saved(tmp_path, lora([1, 5, 9], target_modules=["q_proj", "lm_head"]))
    version = validate(sent, architecture, LIMITS)
    assert version.rank == 7
    assert version.target_modules == ("embed_tokens", "lm_head", "q_proj")


def test_no_token_is_an_ordinary_lora(tmp_path: Path) -> None:
    sent, architecture = saved(tmp_path, lora([]))
    version = validate(sent, architecture, LIMITS)
    assert (version.rank, version.target_modules) == (4, ("q_proj",))
    assert version.trained_tokens == ()
    assert all("lora_" in name for name in load_file(sent / WEIGHTS_FILE))


def test_a_dora_keeps_its_magnitudes(tmp_path: Path) -> None:
    sent, architecture = saved(tmp_path, lora([1, 5], use_dora=True))
    before = load_file(sent / WEIGHTS_FILE)
    magnitudes = {name: tensor for name, tensor in before.items() if "magnitude" in name}
    version = validate(sent, architecture, LIMITS)
    after = load_file(sent / WEIGHTS_FILE)
    assert version.trained_tokens == (1, 5)
    assert len(magnitudes) == 2
    assert all(torch.equal(after[name], tensor) for name, tensor in magnitudes.items())
    assert not json.loads((sent / CONFIG_FILE).read_bytes())["use_dora"]


def test_a_small_file_that_says_a_large_lora(tmp_path: Path) -> None:
    """One half of it is as wide as the vocabulary."""
    sent, architecture = saved(tmp_path, lora([1, 5]))
    with pytest.raises(AdapterTooLarge, match="set of trained tokens is a LoRA of 9,024 bytes"):
        validate(sent, architecture, Limits(max_adapter_bytes=9_000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_and_base_of_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    """What is added is found in 32."""
    sent, architecture = saved(tmp_path, lora([1, 5]))
    base = load_file(tmp_path / "base" / "model.safetensors")
    save_file({k: t.to(dtype) for k, t in base.items()}, tmp_path / "base" / "model.safetensors")
    rows = torch.randn(2, 64).to(dtype)
    change_files(sent, {}, lambda tensors: tensors.update({ROWS: rows}))
    validate(sent, architecture, LIMITS)
    delta = served_deltas(sent)["model.embed_tokens"]
    embedding = base["model.embed_tokens.weight"].to(dtype).float()
    torch.testing.assert_close(embedding[[1, 5]] + delta[[1, 5]], rows.float())
    assert delta.abs().sum(dim=1).nonzero().flatten().tolist() == [1, 5]


def test_the_names_of_an_adapter_and_of_wrappers(tmp_path: Path) -> None:
    sent, architecture = saved(tmp_path, lora([1, 5]))

    def rename(tensors: Tensors) -> None:
        tensors[f"module.{ROWS}.default"] = tensors.pop(ROWS)

    change_files(sent, {}, rename)
    assert validate(sent, architecture, LIMITS).trained_tokens == (1, 5)


@IS_TIED
@pytest.mark.parametrize("config", [lora([1, 5]), own_type()], ids=["lora", "own type"])
def test_copies_of_the_embedding_beside_it(config: Any, is_tied: bool, tmp_path: Path) -> None:
    base, architecture = tiny(tmp_path / "base", is_tied)
    sent = tmp_path / "sent"
    get_peft_model(base, config).save_pretrained(sent, save_embedding_layers=True)
    assert any("base_layer" in name for name in load_file(sent / WEIGHTS_FILE))
    version = validate(sent, architecture, LIMITS)
    assert any("left out, as a copy" in note for note in version.notes)
    assert version.trained_tokens == (1, 5)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Tensors], Any], str]] = {
    "negative": ({"trainable_token_indices": [-1, 5]}, same, "token -1 is trained, and the base"),
    "beyond": (
        {"trainable_token_indices": [1, 500]},
        same,
        "token 500 is trained, and the base model's tokens go from 0 to 499: train tokens",
    ),
    "huge": ({"trainable_token_indices": [1, 10**400]}, same, "is trained, and the base model's"),
    "twice": ({"trainable_token_indices": [5, 5]}, same, "a token is trained twice"),
    "more ids": ({"trainable_token_indices": [1, 5, 7]}, same, r"expected \(3, 64\)"),
    "too many": (
        {"trainable_token_indices": list(range(33))},
        same,
        "33 tokens are trained, .* and the limit is 32: .*--max-lora-rank",
    ),
    "no ids": ({"trainable_token_indices": None}, same, "does not say which tokens they are"),
    "others' ids": (
        {"trainable_token_indices": {"q_proj": [1, 5]}},
        same,
        "does not say which tokens they are",
    ),
    "no tensor of one": (
        {"trainable_token_indices": {"embed_tokens": [1, 5], "other": [1]}},
        same,
        "names tokens of 'other', and .* has no trainable_tokens_delta",
    ),
    "no tensor of the head": (
        {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1]}},
        same,
        "names tokens of 'lm_head', and .* has no trainable_tokens_delta",
    ),
    "no tensor": ({}, lambda tensors: tensors.pop(ROWS), "names tokens, and .* has no trainable_"),
    "bool": ({"trainable_token_indices": [True]}, same, "expected a list of token ids"),
    "text": ({"trainable_token_indices": "1"}, same, "expected a list of token ids"),
    "floats": ({"trainable_token_indices": [1.0]}, same, "expected a list of token ids"),
    "width": (
        {},
        lambda tensors: tensors.update({ROWS: torch.zeros(2, 63)}),
        r"shape \(2, 63\); expected \(2, 64\)",
    ),
    "NaN": ({}, lambda tensors: tensors[ROWS].fill_(torch.nan), "holds NaN"),
    "no module": (
        {"trainable_token_indices": {"embed_tokens": [1, 5], "other": [1]}},
        lambda tensors: tensors.update(
            {"base_model.model.other.token_adapter.trainable_tokens_delta": torch.zeros(1, 64)}
        ),
        "a module that the base model does not have",
    ),
    "no vocabulary": (
        {"trainable_token_indices": {"embed_tokens": [1, 5], "q_proj": [1]}},
        lambda tensors: tensors.update(
            {
                "base_model.model.model.layers.0.self_attn.q_proj.token_adapter."
                "trainable_tokens_delta": torch.zeros(1, 64)
            }
        ),
        "is of trained tokens, and module .*q_proj' has none",
    ),
    "two rows for one": (
        {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1, 5]}},
        lambda tensors: tensors.update(
            {"base_model.model.lm_head.token_adapter.trainable_tokens_delta": torch.zeros(2, 64)}
        ),
        "the same tokens are trained to different rows of it",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused(reason: str, tmp_path: Path) -> None:
    fields, change, sentence = REFUSED[reason]
    sent, architecture = saved(tmp_path, lora([1, 5]))
    change_files(sent, fields, change)
    with pytest.raises(AdapterRejected, match=sentence) as refusal:
        validate(sent, architecture, LIMITS)
    assert refusal.value.message.isprintable()
    assert len(refusal.value.message) < 600


OWN_TYPE_REFUSED: dict[str, tuple[dict[str, Any], Callable[[Tensors], Any], str]] = {
    "no ids": ({"token_indices": []}, same, "has token_indices .*; expected a list of token ids"),
    "null": ({"token_indices": None}, same, "expected a list of token ids"),
    "other tensors": (
        {},
        lambda tensors: tensors.update(
            {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)}
        ),
        "is not of trained tokens",
    ),
    "no tensor": (
        {},
        lambda tensors: tensors.update({"x": tensors.pop(OWN_ROWS)}),
        "'x' is not of trained tokens",
    ),
    "another module": (
        {"target_modules": ["lm_head"]},
        same,
        "model.embed_tokens', which target_modules does not name",
    ),
}


@pytest.mark.parametrize("reason", OWN_TYPE_REFUSED)
def test_what_is_refused_of_its_own_type(reason: str, tmp_path: Path) -> None:
    fields, change, sentence = OWN_TYPE_REFUSED[reason]
    sent, architecture = saved(tmp_path, own_type())
    change_files(sent, fields, change)
    with pytest.raises(AdapterRejected, match=sentence):
        validate(sent, architecture, LIMITS)


def test_ranks_that_add_up_to_too_much(tmp_path: Path) -> None:
    options = {"r": 6, "target_modules": ["lm_head"]}
    sent, architecture = saved(tmp_path, lora([1, 2, 3], **options))
    with pytest.raises(AdapterRejected, match=r"ranks 6 and 3, which are 9 .* limit is 8"):
        validate(sent, architecture, Limits(max_lora_rank=8))


@pytest.mark.parametrize("unadapted", ["model.embed_tokens", "lm_head"])
def test_a_module_that_the_engine_does_not_adapt(unadapted: str, tmp_path: Path) -> None:
    """A tied head is changed with the embedding, so both must be."""
    sent, architecture = saved(tmp_path, lora([1, 5]))
    architecture = replace(architecture, unadapted=frozenset({unadapted}))
    with pytest.raises(AdapterRejected, match=f"no LoRA to module '{unadapted}'.*train a LoRA"):
        validate(sent, architecture, LIMITS)


@pytest.mark.parametrize("dtype", [None, torch.int8, torch.float8_e4m3fn])
def test_a_base_model_that_cannot_be_read(dtype: torch.dtype | None, tmp_path: Path) -> None:
    """A GGUF, and embeddings that are quantized."""
    sent, architecture = saved(tmp_path, lora([1, 5]))
    base = tmp_path / "base" / "model.safetensors"
    if dtype is None:
        architecture = replace(architecture, folder=tmp_path / "model.gguf")
    else:
        save_file({name: tensor.to(dtype) for name, tensor in load_file(base).items()}, base)
    with pytest.raises(AdapterRejected, match="cannot be read to find out what is added: serve"):
        validate(sent, architecture, LIMITS)


def test_a_base_model_with_a_broken_row(tmp_path: Path) -> None:
    """NaN times zero would be NaN for every token."""
    sent, architecture = saved(tmp_path, lora([1, 5]))
    file = tmp_path / "base" / "model.safetensors"
    base = load_file(file)
    base["model.embed_tokens.weight"][5] = torch.nan
    save_file(base, file)
    with pytest.raises(AdapterRejected, match="the difference is not finite"):
        validate(sent, architecture, LIMITS)


def test_resized_embeddings(tmp_path: Path) -> None:
    """A model to which a token was added, as people do it, and then served without it."""
    base, architecture = tiny(tmp_path / "base", True)
    base.resize_token_embeddings(501)
    sent = tmp_path / "sent"
    get_peft_model(base, lora([1, 500])).save_pretrained(sent)
    with pytest.raises(AdapterRejected, match="token 500 is trained, and the base model's tokens"):
        validate(sent, architecture, LIMITS)


def test_a_version_that_was_stored_before_has_no_trained_tokens() -> None:
    stored = {"digest": "0" * 64, "kind": "lora", "size_bytes": 1, "base_model": None, "rank": 2}
    assert TypeAdapter(AdapterVersion).validate_python(stored).trained_tokens == ()
