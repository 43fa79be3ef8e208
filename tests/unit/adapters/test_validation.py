"""Which adapters fit a base model, and the sentence for each that does not."""

import hashlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.multitask_prompt_tuning import (
    MultitaskPromptEmbedding,
    MultitaskPromptTuningConfig,
)
from safetensors import safe_open
from safetensors.torch import save_file

from app.adapters.staging import UploadedFile, stage_files
from app.adapters.validation import digest_of, validate
from app.adapters.validation.targets import ALL_LINEAR
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture, ModuleShape
from app.engine.vllm.architecture import modules_of, without_weights
from app.errors import AdapterError, AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits
from tests.adapter_files import (
    Files,
    as_files,
    lora_config,
    lora_tensors,
    multitask_config,
    multitask_tensors,
    write_files,
    write_lora,
    write_soft_prompt,
)
from tests.bad_adapters import (
    BAD_ADAPTERS,
    MAX_ADAPTER_BYTES,
    BadAdapter,
    good_cpt,
    good_lora,
    good_multitask,
    good_soft_prompt,
)

HIDDEN_SIZE, VOCABULARY_SIZE = 64, 500
PLAIN = settings(deadline=None, derandomize=True, database=None, max_examples=150)
LIMITS = Limits(max_adapter_bytes=MAX_ADAPTER_BYTES)


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
    for good in (good_soft_prompt, good_multitask, good_cpt):
        for file in tmp_path.iterdir():
            file.unlink()
        _validate(_stage(as_files(*good(HIDDEN_SIZE)), tmp_path))


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


def test_cpt(tmp_path: Path) -> None:
    """What PEFT saves of it are the rows, with all that was learned in them: they are served."""
    files = as_files(*good_cpt(HIDDEN_SIZE))
    version = _validate(_stage(files, tmp_path))
    assert (version.kind, version.num_virtual_tokens) == ("soft_prompt", 3)
    assert (version.num_tasks, version.task, version.notes) == (None, None, ())
    assert [(tmp_path / name).read_bytes() for name, _ in files] == [each for _, each in files]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_rows_of_tasks_are_what_peft_makes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = multitask_tensors(5, HIDDEN_SIZE, 3, 2, dtype=dtype)
    config = multitask_config(5, HIDDEN_SIZE, 3, 2)
    version = _validate(write_files(tmp_path, config, tensors))
    assert (version.kind, version.num_virtual_tokens) == ("soft_prompt", 5)
    assert (version.num_tasks, version.task) == (3, None)
    assert version.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    by_peft = _peft_rows(config, tensors)
    assert torch.equal(_served_rows(tmp_path), by_peft)
    assert by_peft.shape == (3, 5, HIDDEN_SIZE)


def test_one_task_alone(tmp_path: Path) -> None:
    config, tensors = good_multitask(HIDDEN_SIZE)
    by_peft = _peft_rows(config, tensors)
    digests = {_validate(write_files(tmp_path / "all", config, tensors)).digest}
    for task in range(3):
        folder = write_files(tmp_path / str(task), config, tensors)
        version = _validate(folder, task=task)
        assert (version.num_virtual_tokens, version.num_tasks, version.task) == (4, None, task)
        assert torch.equal(_served_rows(folder), by_peft[task])
        digests.add(version.digest)
    assert len(digests) == 4
    again = write_files(tmp_path / "again", config, tensors)
    assert _validate(again, task=2).digest in digests


def test_a_task_counts_in_the_digest_as_a_file(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(b"{}")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"abc")
    content = (
        b"adapter_config.json\0\0\0\0\0\0\0\0\2{}adapter_model.safetensors\0\0\0\0\0\0\0\0\3abc"
        b"task\0\0\0\0\0\0\0\0\x0212"
    )
    assert digest_of(tmp_path, 12) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("good", "task", "sentence"),
    [
        (lambda: good_lora(MODULES), 0, "only a MULTITASK_PROMPT_TUNING adapter has tasks"),
        (lambda: good_soft_prompt(HIDDEN_SIZE), 0, "only a MULTITASK_PROMPT_TUNING adapter has"),
        (lambda: good_cpt(HIDDEN_SIZE), 1, "only a MULTITASK_PROMPT_TUNING adapter has tasks"),
        (
            lambda: good_multitask(HIDDEN_SIZE),
            3,
            "there is no task 3: the adapter has the tasks 0 ",
        ),
    ],
)
def test_a_task_that_is_not_there(
    tmp_path: Path, good: Callable[[], Any], task: int, sentence: str
) -> None:
    with pytest.raises(AdapterRejected) as raised:
        _validate(write_files(tmp_path, *good()), task=task)
    assert sentence in raised.value.message
    assert raised.value.param == "task"


def test_one_task_of_what_is_too_large_with_all(tmp_path: Path) -> None:
    num_tasks = 1 + MAX_ADAPTER_BYTES // (256 * HIDDEN_SIZE * 4)
    config = multitask_config(256, HIDDEN_SIZE, num_tasks, 1)
    write_files(tmp_path, config, multitask_tensors(256, HIDDEN_SIZE, num_tasks, 1))
    assert _validate(tmp_path, task=num_tasks - 1).num_virtual_tokens == 256


def _served_rows(folder: Path) -> torch.Tensor:
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        assert list(weights.keys()) == ["prompt_embeddings"]
        rows: torch.Tensor = weights.get_tensor("prompt_embeddings")
    return rows


def _peft_rows(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """What PEFT's own module makes of the tensors for each task."""
    names = ("num_virtual_tokens", "num_tasks", "num_ranks", "token_dim")
    of_peft = MultitaskPromptTuningConfig(
        **{name: config[name] for name in names}, num_transformer_submodules=1
    )
    module = MultitaskPromptEmbedding(of_peft, None)
    module._load_adapter_state_dict(tensors)
    indices = torch.arange(config["num_virtual_tokens"])[None]
    with torch.no_grad():
        tasks = [module(indices, torch.tensor([task])) for task in range(config["num_tasks"])]
    return torch.cat(tasks)


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
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"modules_to_save": []},
        {"loftq_config": {}, "megatron_core": "megatron.core", "use_bdlora": None},
        {"a_field_of_a_later_peft": {"a": [1, 2]}},
    ],
    ids=str,
)
def test_loras_that_fit(options: dict[str, Any], tmp_path: Path) -> None:
    assert _validate(write_lora(tmp_path, MODULES, **options)).kind == "lora"


def test_numbers_that_are_not_there_are_those_of_peft(tmp_path: Path) -> None:
    adapted = {name: module for name, module in MODULES.items() if name.endswith("_proj")}
    config = lora_config(8, target_modules=["q_proj", "v_proj", "up_proj"])
    tensors = lora_tensors(adapted, rank=8)
    del config["r"], config["lora_alpha"]
    version = _validate(write_files(tmp_path, config, tensors))
    assert version.rank == 8
    assert version.notes == tuple(
        f"{name} is not there: it is 8, as PEFT has it" for name in ("r", "lora_alpha")
    )
    served = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (served["r"], served["lora_alpha"]) == (8, 8)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    """Editors on Windows write one; the engine's reader of JSON refuses it."""
    folder = write_lora(tmp_path, MODULES)
    file = folder / CONFIG_FILE
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert _validate(folder).kind == "lora"
    assert json.loads(file.read_text("utf-8"))["peft_type"] == "LORA"


def _edit(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "(.*)*" * 20 + "(q|v)_proj"},
        {"target_modules": ALL_LINEAR, "exclude_modules": ".*(up_proj|lm_head)"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": "(a+)+" * 20},
        {"target_modules": None},
        {"layers_to_transform": [0, 1], "layers_pattern": "lay(?:ers)?"},
        {"layers_to_transform": [0, 1], "layers_pattern": ["no", "layers"]},
        {"layers_to_transform": [0, 1]},
    ],
    ids=str,
)
def test_what_patterns_name(fields: dict[str, Any], tmp_path: Path) -> None:
    version = _validate(_edit(write_lora(tmp_path, MODULES), **fields))
    assert (version.target_modules, version.notes) == (("q_proj", "v_proj"), ())


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ".*q_proj"},
        {"exclude_modules": r".*layers\.1\..*"},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": [0, 1], "layers_pattern": "h"},
    ],
    ids=str,
)
def test_tensors_that_peft_would_leave_out(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match="PEFT would leave them out"):
        _validate(_edit(write_lora(tmp_path, MODULES), **fields))


def test_a_pattern_that_cannot_be_run_leaves_it_to_the_tensors(tmp_path: Path) -> None:
    folder = _edit(write_lora(tmp_path, MODULES), target_modules=r"(?!.*up).*_proj")
    version = _validate(folder)
    assert version.target_modules == ("q_proj", "v_proj")
    assert "cannot be run in linear time" in version.notes[0]


def test_what_is_named_and_absent_is_noted(tmp_path: Path) -> None:
    """PEFT adapts what there is of `target_modules`, and leaves alone what has no tensors."""
    tensors = lora_tensors({name: MODULES[name] for name in (Q_0, V_0)})
    config = lora_config(target_modules=["q_proj", "v_proj", "c_attn"])
    version = _validate(write_files(tmp_path, config, tensors))
    unknown, absent = version.notes
    assert unknown == "target_modules names 'c_attn', which the base model does not have"
    assert absent == (
        "target_modules names 2 modules for which there are no tensors, as "
        "'model.layers.1.self_attn.q_proj': they are served as in the base model"
    )


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
    [
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0},
        {"exclude_modules": r".*layers\.1\..*"},
    ],
    ids=str,
)
def test_a_lora_of_some_layers(restriction: dict[str, Any], tmp_path: Path) -> None:
    tensors = lora_tensors({name: MODULES[name] for name in (Q_0, V_0)})
    _validate(write_files(tmp_path, lora_config(**restriction), tensors))
    assert _validate(tmp_path).notes == ()


PATTERNS = {
    r".*\.layers\.1\..*(q_proj|v_proj)": (2, 64),
    "q_proj|nothing": (3, 0.5),
    "(?:layers.0.)?self_attn.v_proj": (8, 4),
}
RANKS = {"0.self_attn.q_proj": 3, "0.self_attn.v_proj": 8, "1": 2}


def test_patterns_are_served_as_names_of_modules(tmp_path: Path) -> None:
    """vLLM would run them with an engine that can take forever. The first match counts."""
    from peft.utils.other import get_pattern_key
    from vllm.lora.peft_helper import PEFTHelper

    modules = [name for name in MODULES if "self_attn" in name]
    tensors: dict[str, torch.Tensor] = {}
    for end, rank in RANKS.items():
        chosen = {name: MODULES[name] for name in modules if f"layers.{end}" in name}
        tensors |= lora_tensors(chosen, rank)
    config = lora_config(
        10**6,
        rank_pattern={key: rank for key, (rank, _) in PATTERNS.items()},
        alpha_pattern={key: alpha for key, (_, alpha) in PATTERNS.items()},
    )
    assert _validate(write_files(tmp_path, config, tensors)).rank == 8
    helper = PEFTHelper.from_local_dir(str(tmp_path), None)
    assert helper.r == 8
    for module in modules:
        rank, alpha = PATTERNS[get_pattern_key(list(PATTERNS), module)]
        assert helper.get_rank_and_scaling(module) == (rank, alpha / rank)
    assert not set(PATTERNS) & set((tmp_path / CONFIG_FILE).read_text().split('"'))


def test_the_shapes_have_the_ranks_where_a_pattern_cannot_be_run(tmp_path: Path) -> None:
    tensors = lora_tensors({name: MODULES[name] for name in MODULES if "v_proj" in name}, 4)
    tensors |= lora_tensors({name: MODULES[name] for name in MODULES if "q_proj" in name}, 2)
    config = lora_config(4, rank_pattern={"(?!v).*": 2})
    assert _validate(write_files(tmp_path, config, tensors)).rank == 4
    config = lora_config(4, rank_pattern={"(?!v).*": 3})
    with pytest.raises(AdapterRejected, match=r"has the shape \(2, 64\); expected \(4, 64\)"):
        _validate(write_files(tmp_path, config, tensors))


def _renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.", ""),
        ("base_model.model.", "base_model."),
        ("base_model.model.", "base_model.model.base_model.model."),
        ("base_model.model.", "module.base_model.model."),
        ("base_model.model.", "_fsdp_wrapped_module._orig_mod.module.base_model.model."),
        (".layers.0.", ".layers.0._checkpoint_wrapped_module."),
        (".weight", ".default.weight"),
        # Trained on the text model alone, or as a part of a multimodal one.
        ("base_model.model.model.layers", "base_model.model.layers"),
        ("base_model.model.model.", "base_model.model.language_model.model."),
        ("base_model.model.model.", "base_model.model.model.language_model."),
    ],
)
def test_names_with_wrappers(old: str, new: str, tmp_path: Path) -> None:
    config, tensors = good_lora(MODULES)
    version = _validate(write_files(tmp_path, config, _renamed(tensors, old, new)))
    assert "were read by PEFT's names" in version.notes[0]
    with safe_open(tmp_path / WEIGHTS_FILE, framework="pt") as weights:
        assert set(weights.keys()) == set(tensors)
        assert all(torch.equal(weights.get_tensor(name), tensors[name]) for name in tensors)


def test_names_that_mean_the_same(tmp_path: Path) -> None:
    config, tensors = good_lora(MODULES)
    wrapped = _renamed(tensors, "base_model", "module.base_model")
    both = tensors | {name: tensor.clone() for name, tensor in wrapped.items()}
    with pytest.raises(AdapterRejected, match="are both for"):
        _validate(write_files(tmp_path, config, both))
    of_two = _renamed(tensors, "A.weight", "A.one.weight")
    of_two = _renamed(of_two, "B.weight", "B.two.weight")
    with pytest.raises(AdapterRejected, match=r"several adapters \('one', 'two'\)"):
        _validate(write_files(tmp_path, config, of_two))


def test_the_rank_is_the_limit(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match="has rank 33 and the limit is 32"):
        _validate(write_lora(tmp_path, MODULES, 33))
    limits = Limits(max_lora_rank=33)
    assert validate(tmp_path, ARCHITECTURE, limits).rank == 33


# What is not asked for, or cannot be.


@pytest.mark.parametrize(
    ("served", "declared"),
    [
        *(("tiny", declared) for declared in (None, "", "tiny", "TINY", "a/tiny", "/models/tiny/")),
        ("Tiny-Llama", "C:\\models\\Tiny-Llama"),
        ("Tiny-Llama", "tiny_llama"),
        ("someone/Tiny-Llama", "unsloth/tiny-llama-unsloth-bnb-4bit"),
        ("Tiny-1.1B-Chat-v0.1", "TheBloke/Tiny-1.1B-Chat-v0.1-GPTQ"),
        ("Tiny-1B", "x/Tiny-1B-GPTQ-Int4"),
        ("Tiny-1B", "x/Tiny-1B-FP8-dynamic"),
        ("Tiny-1B", "x/Tiny-1B-quantized.w8a8"),
        ("Tiny-1B", "/m/Tiny-1B.Q4_K_M.gguf"),
        ("Tiny-1B", "mlx-community/Tiny-1B-4bit"),
        ("Tiny-1B-W8A8", "x/Tiny-1B-AWQ"),
        ("meta-llama/Llama-3.1-8B-Instruct", "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"),
        ("Tiny-1B", "/srv/.cache/huggingface/hub/models--x--Tiny-1B/snapshots/0123456789abcdef"),
    ],
)
def test_its_own_base_model(served: str, declared: str | None, tmp_path: Path) -> None:
    architecture = replace(ARCHITECTURE, names=frozenset({served}))
    version = validate(write_lora(tmp_path, MODULES, base_model=declared), architecture, LIMITS)
    assert (version.base_model, version.notes) == (declared or None, ())


@pytest.mark.parametrize(
    "declared",
    [
        *("/workspace/model", "./base_model/", "/data/my-llama", "model", "outputs/checkpoint-50"),
        *("/m/Tiny-1B/main", "D:\\merged", "~/best", "/kaggle/input/tiny/transformers/1"),
    ],
)
def test_a_folder_that_says_nothing(declared: str, tmp_path: Path) -> None:
    architecture = replace(ARCHITECTURE, names=frozenset({"Tiny-1B"}))
    version = validate(write_lora(tmp_path, MODULES, base_model=declared), architecture, LIMITS)
    assert version.base_model == declared
    assert "does not say which model it is" in version.notes[0]


@pytest.mark.parametrize(
    "declared",
    [
        *("someone/Tiny-2-1B", "gpt2", "Tiny-1B-Instruct", "/m/Tiny-7B", "/m/Tiny-1B/Tiny-7B"),
        *("unsloth/Tiny-1-1B-bnb-4bit", "/hub/models--x--Tiny-2/snapshots/0123456789ab", "4bit"),
    ],
)
def test_other_base_models(declared: str, tmp_path: Path) -> None:
    architecture = replace(ARCHITECTURE, names=frozenset({"Tiny-1B"}))
    with pytest.raises(AdapterRejected, match="was trained on"):
        validate(write_lora(tmp_path, MODULES, base_model=declared), architecture, LIMITS)


def test_another_base_model(tmp_path: Path) -> None:
    """Its advice can be followed, also in the watched folder."""
    folder = write_lora(tmp_path, MODULES, base_model="someone/tiny-2")
    with pytest.raises(AdapterRejected) as raised:
        _validate(folder)
    assert raised.value.message == (
        "the adapter was trained on 'someone/tiny-2' and this server runs Tiny-Llama or tiny: send "
        "it to a server of its base model; if the two are the same, upload it with force=true, or "
        "write 'Tiny-Llama' for base_model_name_or_path in its adapter_config.json"
    )
    assert _validate(_edit(folder, base_model_name_or_path="Tiny-Llama")).notes == ()
    write_lora(tmp_path, MODULES, base_model="someone/tiny-2")
    assert _validate(folder, force=True).base_model == "someone/tiny-2"
    write_lora(tmp_path, MODULES, base_model="someone/tiny-2", lora_bias=True)
    with pytest.raises(AdapterRejected, match="sets lora_bias"):
        _validate(folder, force=True)


@pytest.mark.parametrize(
    ("init", "advice"),
    [
        ("pissa", "path_initial_model_for_weight_conversion"),
        ("pissa_niter_16", "path_initial_model_for_weight_conversion"),
        ("olora", "path_initial_model_for_weight_conversion"),
        ("corda", "path_initial_model_for_weight_conversion"),
        ("lora_ga", "path_initial_model_for_weight_conversion"),
        ("loftq", "PEFT cannot convert it: train with"),
        ("of_a_later_peft", "this server does not know"),
    ],
)
def test_inits_that_change_the_base_model(init: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match=advice):
        _validate(write_lora(tmp_path, MODULES, init_lora_weights=init))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_advice_to_convert_can_be_followed(init: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=init)
    model = get_peft_model(AutoModelForCausalLM.from_config(_llama()), lora)
    before, converted = tmp_path / "before", tmp_path / "converted"
    model.save_pretrained(before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base model is changed meanwhile
        model.save_pretrained(converted, path_initial_model_for_weight_conversion=str(before))
    architecture = Architecture(
        frozenset({"tiny"}), HIDDEN_SIZE, modules_of(without_weights(_llama()))
    )
    assert validate(converted, architecture, LIMITS).rank == 16


def test_a_model_without_soft_prompts(tmp_path: Path) -> None:
    architecture = Architecture(frozenset({"x"}), 64, MODULES, no_soft_prompts="it has ears")
    folder = write_soft_prompt(tmp_path, 5, HIDDEN_SIZE)
    with pytest.raises(AdapterRejected, match="no soft prompt can be added: it has ears"):
        validate(folder, architecture, LIMITS)


def test_a_module_that_the_engine_does_not_adapt(tmp_path: Path) -> None:
    architecture = replace(ARCHITECTURE, unadapted=frozenset({"lm_head"}))
    assert validate(write_lora(tmp_path, MODULES), architecture, LIMITS).kind == "lora"
    folder = write_lora(tmp_path, MODULES, target_modules=["q_proj", "lm_head"])
    with pytest.raises(AdapterRejected, match="'lm_head', to which the engine adds no LoRA"):
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


SHAPE = {
    "vocab_size": 100,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPE)


def _qwen2() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**SHAPE)


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
    return Architecture(frozenset({"tiny"}), HIDDEN_SIZE, modules_of(without_weights(config)))


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


def _with_folder(architecture: Architecture, config: Any, folder: Path) -> Architecture:
    """The base model that `_save` adapted, as it lies on disk."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return replace(architecture, folder=folder)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("targets", [["embed_tokens", "lm_head"], ["q_proj", "lm_head"]])
def test_copies_of_the_base_models_weights(
    is_tied: bool, targets: list[str], tmp_path: Path
) -> None:
    """PEFT saves a copy of an embedding that is adapted, unless it is told not to."""
    from peft import LoraConfig

    base = _llama()
    base.tie_word_embeddings = is_tied
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    sent = tmp_path / "sent"
    architecture = _with_folder(_save(base, lora, sent), base, tmp_path / "base")
    with safe_open(sent / WEIGHTS_FILE, framework="pt") as weights:
        copies = [name for name in weights.keys() if "lora" not in name]  # noqa: SIM118
    assert copies
    digest = digest_of(sent)
    version = validate(sent, architecture, LIMITS)
    assert (version.digest, version.target_modules) == (digest, tuple(sorted(targets)))
    assert "left out, as a copy that equals the base model's own weights" in version.notes[0]
    with safe_open(sent / WEIGHTS_FILE, framework="pt") as weights:
        assert all("lora" in name for name in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("saved", "noted"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head', which"),
        ({"modules_to_save": ["score"]}, "modules_to_save names 'score', which"),
        ({"bias": "all"}, "bias is 'all', and the biases are those of the base model"),
        ({"bias": "lora_only"}, "bias is 'lora_only', and the biases are"),
    ],
    ids=str,
)
@pytest.mark.parametrize("base", [_llama, _qwen2])
def test_what_may_be_trained_of_the_base_model_and_was_not(
    base: Callable[[], Any], saved: dict[str, Any], noted: str, tmp_path: Path
) -> None:
    """Qwen2 has biases, which PEFT then saves."""
    from peft import LoraConfig

    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **saved)
    sent = tmp_path / "sent"
    architecture = _with_folder(_save(base(), lora, sent), base(), tmp_path / "base")
    version = validate(sent, architecture, LIMITS)
    assert version.target_modules == ("q_proj",)
    assert noted in version.notes[-1]
    assert not json.loads((sent / CONFIG_FILE).read_bytes())["modules_to_save"]


def _copy_of_head(folder: Path, copy: torch.Tensor, name: str = "lm_head.base_layer") -> Path:
    config, tensors = good_lora(MODULES)
    return write_files(folder, config, tensors | {f"base_model.model.{name}.weight": copy})


def test_a_copy_in_the_type_that_it_was_trained_in(tmp_path: Path) -> None:
    head = torch.randn(VOCABULARY_SIZE, HIDDEN_SIZE)
    for stored, saved in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        save_file({"lm_head.weight": head.to(stored)}, tmp_path / "model.safetensors")
        architecture = replace(ARCHITECTURE, folder=tmp_path)
        folder = _copy_of_head(tmp_path / "sent", head.to(stored).to(saved), "lm_head")
        assert validate(folder, architecture, LIMITS).notes


@pytest.mark.parametrize("name", ["prompt tuning", "MLP"])
def test_a_soft_prompt_with_a_copy(name: str, tmp_path: Path) -> None:
    from peft import PromptEncoderConfig, PromptTuningConfig

    kind = PromptTuningConfig if name == "prompt tuning" else PromptEncoderConfig
    sent = tmp_path / "sent"
    architecture = _save(
        _llama(),
        kind(task_type="CAUSAL_LM", num_virtual_tokens=6),
        sent,
        save_embedding_layers=True,
    )
    with safe_open(sent / WEIGHTS_FILE, framework="pt") as weights:
        assert len(list(weights.keys())) > 1
    version = validate(sent, _with_folder(architecture, _llama(), tmp_path / "base"), LIMITS)
    assert (version.num_virtual_tokens, len(version.notes)) == (6, 1)
    with safe_open(sent / WEIGHTS_FILE, framework="pt") as weights:
        assert list(weights.keys()) == ["prompt_embeddings"]


def test_copies_alone_are_no_lora(tmp_path: Path) -> None:
    head = torch.randn(VOCABULARY_SIZE, HIDDEN_SIZE)
    save_file({"lm_head.weight": head}, tmp_path / "model.safetensors")
    folder = write_files(tmp_path / "sent", lora_config(), {"lm_head.base_layer.weight": head})
    with pytest.raises(AdapterRejected, match="no tensors of a LoRA"):
        validate(folder, replace(ARCHITECTURE, folder=tmp_path), LIMITS)


def test_copies_that_change_the_base_model(tmp_path: Path) -> None:
    head = torch.randn(VOCABULARY_SIZE, HIDDEN_SIZE)
    save_file({"lm_head.weight": head}, tmp_path / "model.safetensors")
    architecture = replace(ARCHITECTURE, folder=tmp_path)
    for copy, sentence in (
        (head + 0.01, "and differs from them"),
        (torch.cat([head, head[:1]]), "without resizing the embeddings"),
        (head.to(torch.int8), "and differs from them"),
    ):
        with pytest.raises(AdapterRejected, match=sentence):
            validate(_copy_of_head(tmp_path / "sent", copy), architecture, LIMITS)
    with pytest.raises(AdapterRejected, match="save_embedding_layers=False"):
        validate(_copy_of_head(tmp_path / "sent", head), ARCHITECTURE, LIMITS)


# Whatever is sent.

GOOD_CONFIG, GOOD_WEIGHTS = (content for _, content in as_files(*good_lora(MODULES)))
FIELDS = [*lora_config(), "exclude_modules", "lora_bias", "trainable_token_indices"]
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
@given(field=st.sampled_from(FIELDS), value=JSON)
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
