"""A folder that no engine could load is refused with a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.engine.model import default as default_model
from app.engine.model.find import base_names, check_model_folder, find_model
from app.engine.model.precision import QUANTIZED_FROM
from app.errors import ModelNotFound, ModelNotLoadable
from app.settings import Settings

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    save_file({"weight": np.ones(100, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def _refusal(folder: Path) -> str:
    with pytest.raises(ModelNotLoadable) as raised:
        check_model_folder(folder)
    return raised.value.message


def test_a_good_folder_passes(folder: Path) -> None:
    check_model_folder(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert _refusal(folder) == (
        f"{folder} has no config.json: --model takes a folder in the Hugging Face format"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"not json"])
def test_config_is_not_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert _refusal(folder).startswith(f"{folder / 'config.json'} is not JSON: ")


@pytest.mark.parametrize("content", ["{}", "[]", "7", '{"architectures": []}', '"text"'])
def test_config_names_no_architecture(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert _refusal(folder) == (
        f"{folder / 'config.json'} names no architectures: it is not a model's configuration"
    )


def test_config_cannot_be_read(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json" in _refusal(folder)


def test_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert _refusal(folder) == (
        f"{folder} has no *.safetensors: convert its weights with transformers' save_pretrained"
    )


@pytest.mark.parametrize("num_bytes", [0, 4, 20, 300])
def test_truncated_safetensors(folder: Path, num_bytes: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    message = _refusal(folder)
    assert message.startswith(f"{file} is damaged (")
    assert message.endswith("): fetch it again")


def test_one_damaged_file_of_several(folder: Path) -> None:
    (folder / "model-2.safetensors").write_bytes(b"x" * 100)
    assert _refusal(folder).startswith(f"{folder / 'model-2.safetensors'} is damaged (")


def test_a_shard_that_was_not_copied(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert _refusal(folder) == (
        f"{folder} lacks model-2.safetensors, which model.safetensors.index.json names: "
        "copy or fetch it again"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 7}'])
def test_an_index_that_is_none(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    assert _refusal(folder) == (
        f"{folder / 'model.safetensors.index.json'} is no index of weights: fetch it again"
    )


def test_a_folder_is_served_under_its_name(folder: Path) -> None:
    assert find_model(Settings(model=str(folder))) == ("model", folder)


def test_the_served_name_can_be_given(folder: Path) -> None:
    settings = Settings(model=str(folder), served_model_name="ours")
    assert find_model(settings) == ("ours", folder)


def test_a_relative_folder_gets_its_real_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert find_model(Settings(model=".")) == ("model", folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFound) as raised:
        find_model(Settings(model=name))
    assert raised.value.message == (
        f"there is no folder {name}: give a folder or a hub id to --model"
    )


def test_no_model_is_the_default_model(tmp_path: Path) -> None:
    made = tmp_path / "models" / default_model.NAME
    made.mkdir(parents=True)
    assert find_model(Settings(cache_dir=tmp_path)) == (default_model.NAME, made)


def snapshot(folder: Path, cached: str) -> Path:
    """The folder as the hub's cache has it."""
    parent = folder.parent / cached / "snapshots"
    parent.mkdir(parents=True)
    return folder.rename(parent / "5e1f")


def test_a_snapshot_in_the_hubs_cache_is_served_under_its_hub_id(folder: Path) -> None:
    found = snapshot(folder, "models--acme--tiny-llama")

    assert find_model(Settings(model=str(found))) == ("acme/tiny-llama", found)


@pytest.mark.parametrize(
    ("cached", "model", "names"),
    [
        ("models--acme--tiny", "acme/tiny", {"acme/tiny", "tiny", "5e1f"}),
        ("models--tiny", "tiny", {"tiny", "5e1f"}),
        ("datasets--acme--tiny", "a/b", {"a/b", "5e1f"}),
    ],
)
def test_the_base_model_goes_by_its_hub_id(
    folder: Path, cached: str, model: str, names: set[str]
) -> None:
    assert base_names(Settings(model=model), snapshot(folder, cached)) == names


def test_the_base_model_goes_by_its_hub_id_where_its_folder_is_given(folder: Path) -> None:
    found = snapshot(folder, "models--acme--tiny")

    assert {"acme/tiny", "tiny"} <= base_names(Settings(model=str(found)), found)


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, set()),
        ({"_name_or_path": "acme/tiny"}, {"acme/tiny"}),
        ({"_name_or_path": ""}, set()),
        ({"_name_or_path": None}, set()),
        ({"_name_or_path": 7}, set()),
        ({QUANTIZED_FROM: "tiny", "_name_or_path": "/old/tiny-2"}, {"tiny", "/old/tiny-2"}),
    ],
)
def test_the_base_model_goes_by_what_its_config_says(
    folder: Path, fields: dict[str, object], more: set[str]
) -> None:
    (folder / "config.json").write_text(json.dumps(json.loads(CONFIG) | fields))
    settings = Settings(model=str(folder), served_model_name="ours")

    assert base_names(settings, folder) == {"ours", str(folder), "model"} | more
