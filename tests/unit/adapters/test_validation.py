"""Which adapters fit a base model, and the sentence for each that does not."""

import hashlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.staging import UploadedFile, stage_files
from app.adapters.validation import digest_of, validate
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture, ModuleShape
from app.engine.vllm.architecture import modules_of
from app.errors import AdapterError, AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits
from tests.adapter_files import (
    Files,
    as_files,
    lora_config,
    lora_tensors,
    write_files,
    write_lora,
    write_soft_prompt,
)
from tests.bad_adapters import (
    BAD_ADAPTERS,
    MAX_ADAPTER_BYTES,
    BadAdapter,
    good_lora,
    good_soft_prompt,
)

HIDDEN_SIZE, VOCABULARY_SIZE = 64, 500
PLAIN = settings(deadline=None, derandomize=True, database=None, max_examples=150)
LIMITS = Limits()


def _modules() -> dict[str, ModuleShape]:
    modules = {"model.embed_tokens": ModuleShape("embedding", VOCABULARY_SIZE, HIDDEN_SIZE)}
    for layer in range(2):
        for name, out_features in (("q_proj", 64), ("v_proj", 32)):
            modules[f"model.layers.{layer}.self_attn.{name}"] = ModuleShape(
                "linear", HIDDEN_SIZE, out_features
            )
        modules[f"model.layers.{layer}.mlp.up_proj"] = ModuleShape("linear", HIDDEN_SIZE, 128)
    return modules | {"lm_head": ModuleShape("linear", HIDDEN_SIZE, VOCABULARY_SIZE)}


MODULES = _modules()
ARCHITECTURE = Architecture(frozenset({"Tiny-Llama", "tiny"}), HIDDEN_SIZE, MODULES)
Q_0, V_0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"


def _validate(folder: Path, **options: Any) -> AdapterVersion:
    return validate(folder, ARCHITECTURE, LIMITS, **options)


def _stage(files: Files, into: Path) -> Path:
    uploads = [UploadedFile(name, io.BytesIO(content)) for name, content in files]
    stage_files(uploads, into, MAX_ADAPTER_BYTES)
    return into


@pytest.mark.parametrize("bad", BAD_ADAPTERS, ids=[bad.id for bad in BAD_ADAPTERS])
def test_bad_adapters(bad: BadAdapter, tmp_path: Path) -> None:
    error = AdapterTooLarge if bad.status == 413 else AdapterRejected
    with pytest.raises(error) as raised:
        _validate(_stage(bad.make(HIDDEN_SIZE, MODULES), tmp_path))
    assert type(raised.value) is error
    assert bad.sentence in raised.value.message
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 600
    assert {file.name for file in tmp_path.iterdir()} <= {CONFIG_FILE, WEIGHTS_FILE}


def test_bad_adapters_are_bad_for_one_reason(tmp_path: Path) -> None:
    """What they are made from is accepted."""
    _validate(_stage(as_files(*good_lora(MODULES)), tmp_path))
    for file in tmp_path.iterdir():
        file.unlink()
    _validate(_stage(as_files(*good_soft_prompt(HIDDEN_SIZE)), tmp_path))


def test_bad_adapters_have_names_of_their_own() -> None:
    assert len({bad.id for bad in BAD_ADAPTERS}) == len(BAD_ADAPTERS)


def test_a_lora(tmp_path: Path) -> None:
    version = _validate(write_lora(tmp_path, MODULES, 4, base_model="Someone/TINY-llama"))
    assert version == AdapterVersion(
        digest=digest_of(tmp_path),
        kind="lora",
        size_bytes=sum(file.stat().st_size for file in tmp_path.iterdir()),
        base_model="Someone/TINY-llama",
        rank=4,
        target_modules=("q_proj", "v_proj"),
    )


def test_a_soft_prompt(tmp_path: Path) -> None:
    version = _validate(write_soft_prompt(tmp_path, 5, HIDDEN_SIZE))
    assert (version.kind, version.num_virtual_tokens) == ("soft_prompt", 5)
    assert (version.rank, version.target_modules, version.base_model) == (None, (), None)


def test_the_digest_is_of_names_lengths_and_contents(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(b"{}")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"abc")
    content = (
        b"adapter_config.json\0\0\0\0\0\0\0\0\2{}adapter_model.safetensors\0\0\0\0\0\0\0\0\3abc"
    )
    assert digest_of(tmp_path) == hashlib.sha256(content).hexdigest()


def test_equal_files_have_equal_digests(tmp_path: Path) -> None:
    first, again, other = (
        _validate(write_lora(tmp_path / name, MODULES, seed=seed)).digest
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again != other


def test_it_is_imported_without_torch() -> None:
    heavy = "{'torch', 'safetensors'}"
    code = f"import app.adapters.validation, sys; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match=f"{CONFIG_FILE} is missing"):
        _validate(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(lora_config()))
    with pytest.raises(AdapterRejected, match=f"{WEIGHTS_FILE} is missing"):
        _validate(tmp_path)


# LoRA.


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16},
        {"scale": 0},
        {"rank": 32},
        {"alpha": 0.5},
        {"alpha": -8},
        {"target_modules": ["up_proj"]},
        {"target_modules": ["self_attn.q_proj"]},
        {"target_modules": [Q_0, "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"use_rslora": True},
        {"use_rslora": None},
        {"task_type": None},
        {"rank_pattern": None, "alpha_pattern": None},
        {"rank_pattern": {"no_such_module": 7}},
        {"alpha_pattern": {"q_proj": 3, "^model.layers.0.self_attn.v_proj": 0.5}},
        {"alpha_pattern": {"layers\\.0\\.self_attn\\.q_proj": 3}},
        {"init_lora_weights": None},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"modules_to_save": []},
        {"loftq_config": {}, "megatron_core": "megatron.core", "use_bdlora": None},
        {"a_field_of_a_later_peft": {"a": [1, 2]}},
    ],
    ids=str,
)
def test_loras_that_fit(options: dict[str, Any], tmp_path: Path) -> None:
    assert _validate(write_lora(tmp_path, MODULES, **options)).kind == "lora"


def test_a_pattern_of_target_modules_is_not_run(tmp_path: Path) -> None:
    """It would never end."""
    folder = write_lora(tmp_path, MODULES, target_modules=["q_proj"])
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"target_modules": "(.*)*" * 20 + "!"}))
    assert _validate(folder).target_modules == ("q_proj",)


def test_many_targets_take_no_time(tmp_path: Path) -> None:
    config = lora_config(target_modules=["q_proj", "v_proj"] * 20_000)
    modules = {name: shape for name, shape in MODULES.items() if "_proj" in name}
    tensors = lora_tensors({name: modules[name] for name in modules if "up" not in name})
    assert _validate(write_files(tmp_path, config, tensors)).rank == 4


@pytest.mark.parametrize(
    "pattern",
    [
        {"q_proj": 2},
        {"self_attn.q_proj": 2},
        {"layers.0.self_attn.q_proj": 2, "layers.1.self_attn.q_proj": 2},
        {"^model.layers.0.self_attn.q_proj": 2, "model.layers.1.self_attn.q_proj": 2},
        # The first match counts.
        {"q_proj": 2, "layers.0.self_attn.q_proj": 8},
        # Not at a dot, not at the start, not at the end.
        {"_proj": 8, "^q_proj": 8, "q_pro": 8, "q_proj": 2},
    ],
    ids=str,
)
def test_rank_pattern(pattern: dict[str, int], tmp_path: Path) -> None:
    tensors = lora_tensors({name: MODULES[name] for name in MODULES if "v_proj" in name}, 4)
    tensors |= lora_tensors({name: MODULES[name] for name in MODULES if "q_proj" in name}, 2)
    folder = write_files(tmp_path, lora_config(4, rank_pattern=pattern), tensors)
    assert _validate(folder).rank == 4


@pytest.mark.parametrize(
    "restriction",
    [{"layers_to_transform": [0]}, {"layers_to_transform": 0}, {"exclude_modules": ["layers.1"]}],
    ids=str,
)
def test_a_lora_of_some_layers(restriction: dict[str, Any], tmp_path: Path) -> None:
    tensors = lora_tensors({name: MODULES[name] for name in (Q_0, V_0)})
    _validate(write_files(tmp_path, lora_config(**restriction), tensors))
    with pytest.raises(AdapterRejected, match=r"no tensors for module 'model\.layers\.1\."):
        _validate(write_files(tmp_path, lora_config(layers_to_transform=[]), tensors))


def test_the_rank_is_the_limit(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match="has rank 33 and the limit is 32"):
        _validate(write_lora(tmp_path, MODULES, 33))
    limits = Limits(max_lora_rank=33)
    assert validate(tmp_path, ARCHITECTURE, limits).rank == 33


# What is not asked for, or cannot be.


@pytest.mark.parametrize(
    "declared", [None, "", "tiny", "TINY", "a/tiny", "/models/tiny/", "C:\\models\\Tiny-Llama"]
)
def test_its_own_base_model(declared: str | None, tmp_path: Path) -> None:
    assert _validate(write_lora(tmp_path, MODULES, base_model=declared)).base_model == (
        declared or None
    )


def test_another_base_model(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, MODULES, base_model="someone/tiny-2")
    with pytest.raises(AdapterRejected) as raised:
        _validate(folder)
    assert raised.value.message == (
        "the adapter was trained on 'someone/tiny-2' and this server runs Tiny-Llama or tiny: send "
        "it to a server of its base model, or with force=true if the two are the same"
    )
    assert _validate(folder, force=True).base_model == "someone/tiny-2"
    write_lora(tmp_path, MODULES, base_model="someone/tiny-2", use_dora=True)
    with pytest.raises(AdapterRejected, match="sets use_dora"):
        _validate(folder, force=True)


def test_a_model_without_soft_prompts(tmp_path: Path) -> None:
    architecture = Architecture(frozenset({"x"}), 64, MODULES, no_soft_prompts="it has ears")
    folder = write_soft_prompt(tmp_path, 5, HIDDEN_SIZE)
    with pytest.raises(AdapterRejected, match="no soft prompt can be added: it has ears"):
        validate(folder, architecture, LIMITS)


def test_a_server_without_loras(tmp_path: Path) -> None:
    architecture = Architecture(frozenset({"x"}), 64, MODULES, no_loras="it runs without")
    with pytest.raises(AdapterRejected, match="no LoRA can be added: it runs without"):
        validate(write_lora(tmp_path, MODULES), architecture, LIMITS)


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "P_TUNING"},
        {"token_dim": None, "num_transformer_submodules": None},
        {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Summarize:"},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_virtual_tokens", [1, 256])
def test_soft_prompts_that_fit(
    fields: dict[str, Any], num_virtual_tokens: int, tmp_path: Path
) -> None:
    folder = write_soft_prompt(tmp_path, num_virtual_tokens, HIDDEN_SIZE, **fields)
    assert _validate(folder).num_virtual_tokens == num_virtual_tokens


# What PEFT itself saves.

LORAS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*layers\.\d+\.self_attn\.(q|k)_proj"},
    "rslora": {"target_modules": ["down_proj"], "use_rslora": True, "lora_alpha": 3},
    "rank_pattern": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, "v_proj": 6},
        "alpha_pattern": {"v_proj": 5},
    },
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}
GPT2_LORAS: dict[str, dict[str, Any]] = {
    "default": {},
    "list": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "all-linear": {"target_modules": "all-linear", "fan_in_fan_out": True},
    "embeddings": {"target_modules": ["wte", "wpe"]},
}


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=100,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=100, n_embd=HIDDEN_SIZE, n_layer=2, n_head=4, n_positions=32)


def _save(config: Any, peft_config: Any, folder: Path, **options: Any) -> Architecture:
    """Have PEFT save a new adapter of a random model."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to who trains
        get_peft_model(model, peft_config).save_pretrained(folder, **options)
    return Architecture(frozenset({"tiny"}), HIDDEN_SIZE, modules_of(config))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        *((_llama, options) for options in LORAS.values()),
        *((_gpt2, options) for options in GPT2_LORAS.values()),
    ],
    ids=[*(f"llama {name}" for name in LORAS), *(f"gpt2 {name}" for name in GPT2_LORAS)],
)
def test_loras_of_peft(config: Callable[[], Any], options: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8} | options)
    architecture = _save(config(), lora, tmp_path)
    version = validate(tmp_path, architecture, LIMITS)
    assert version.kind == "lora"
    assert version.rank == (6 if "rank_pattern" in options else 4)


@pytest.mark.parametrize("config", [_llama, _gpt2])
@pytest.mark.parametrize("name", ["prompt tuning", "MLP", "LSTM"])
def test_soft_prompts_of_peft(config: Callable[[], Any], name: str, tmp_path: Path) -> None:
    from peft import PromptEncoderConfig, PromptTuningConfig

    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 6}
    peft_config = (
        PromptTuningConfig(**common)
        if name == "prompt tuning"
        else PromptEncoderConfig(
            **common, encoder_reparameterization_type=name, encoder_hidden_size=16
        )
    )
    architecture = _save(config(), peft_config, tmp_path)
    assert validate(tmp_path, architecture, LIMITS).num_virtual_tokens == 6


def test_prefixes_of_peft(tmp_path: Path) -> None:
    from peft import PrefixTuningConfig

    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    architecture = _save(_llama(), prefix, tmp_path)
    with pytest.raises(AdapterRejected, match="keys and values for every layer"):
        validate(tmp_path, architecture, LIMITS)


def test_embeddings_of_peft(tmp_path: Path) -> None:
    """PEFT saves a copy of an embedding that is adapted, unless it is told not to."""
    from peft import LoraConfig

    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens", "lm_head"])
    architecture = _save(_llama(), lora, tmp_path)
    with pytest.raises(AdapterRejected, match="save_embedding_layers=False"):
        validate(tmp_path, architecture, LIMITS)
    _save(_llama(), lora, tmp_path, save_embedding_layers=False)
    assert validate(tmp_path, architecture, LIMITS).target_modules == ("embed_tokens", "lm_head")


# Whatever is sent.

GOOD_CONFIG, GOOD_WEIGHTS = (content for _, content in as_files(*good_lora(MODULES)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
)


def _edited(content: bytes, edits: list[tuple[float, int]]) -> bytes:
    edited = bytearray(content)
    for position, byte in edits:
        edited[int(position * len(edited))] = byte
    return bytes(edited)


def _is_settled(folder: Path, config: bytes, weights: bytes) -> None:
    """Accepted, or refused in a sentence."""
    (folder / CONFIG_FILE).write_bytes(config)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    assert (_refusal(folder) or "accepted").isprintable()


def _refusal(folder: Path) -> str | None:
    try:
        _validate(folder)
    except AdapterError as error:
        return error.message
    return None


@PLAIN
@given(edits=EDITS)
def test_edited_configurations(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, int]]
) -> None:
    _is_settled(tmp_path_factory.mktemp("a"), _edited(GOOD_CONFIG, edits), GOOD_WEIGHTS)


@PLAIN
@given(field=st.sampled_from([*lora_config(), "exclude_modules", "lora_bias"]), value=JSON)
def test_configurations_of_other_types(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    config = json.dumps(json.loads(GOOD_CONFIG) | {field: value}).encode()
    _is_settled(tmp_path_factory.mktemp("a"), config, GOOD_WEIGHTS)


@PLAIN
@given(edits=EDITS, header_only=st.booleans(), end=st.integers(-20, 0))
def test_edited_weights(
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[float, int]],
    header_only: bool,
    end: int,
) -> None:
    header_length = 8 + int.from_bytes(GOOD_WEIGHTS[:8], "little")
    split = header_length if header_only else len(GOOD_WEIGHTS)
    weights = _edited(GOOD_WEIGHTS[:split], edits) + GOOD_WEIGHTS[split:]
    _is_settled(tmp_path_factory.mktemp("a"), GOOD_CONFIG, weights[: len(weights) + end])


@PLAIN
@given(config=st.binary(), weights=st.binary())
def test_random_bytes(
    tmp_path_factory: pytest.TempPathFactory, config: bytes, weights: bytes
) -> None:
    _is_settled(tmp_path_factory.mktemp("a"), config, GOOD_WEIGHTS)
    _is_settled(tmp_path_factory.mktemp("a"), GOOD_CONFIG, weights)
