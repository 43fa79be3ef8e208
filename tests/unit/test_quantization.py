"""`softserve quantize`, on tiny random models: whole or not at all."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from app.engine.model import default as default_model
from app.engine.model.find import base_names
from app.engine.model.precision import QUANTIZED_FROM
from app.errors import ModelNotFound, ModelNotLoadable, QuantizationFailed
from app.quantization.calibration import round_activations
from app.quantization.checkpoint import quantize_checkpoint
from app.quantization.gptq import InputStatistics, quantize
from app.settings import Settings

# PyTorch's own, when transformers imports a part of it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

ALPHABET = sorted(ByteLevel.alphabet())
SHAPE = {
    "vocab_size": len(ALPHABET),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LINEARS_IN_A_LAYER = 7
COMMAND = str(Path(sys.executable).with_name("softserve"))


def make_model(folder: Path, model_type: str = "llama", **options: Any) -> Path:
    """A random model, with a tokenizer whose tokens are bytes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE | options)
    # Its maximum shard size splits the weights into several files.
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size="20KB"
    )
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(ALPHABET)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def quantized(source: Path) -> Path:
    out = source.with_name("tiny-w8a8")
    quantize_checkpoint(str(source), out, Progress(disable=True))
    return out


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_every_linear_layer_of_the_decoder_is_in_int8(source: Path, quantized: Path) -> None:
    original, made = tensors_of(source), tensors_of(quantized)
    integers = {name for name, tensor in made.items() if tensor.dtype == torch.int8}

    assert integers == {n for n in original if n.endswith("_proj.weight")}
    assert len(integers) == SHAPE["num_hidden_layers"] * LINEARS_IN_A_LAYER
    assert made.keys() - original.keys() == {f"{name}_scale" for name in integers}
    for name in original.keys() - integers:
        assert made[name].equal(original[name])
    for name in integers:
        scale = made[f"{name}_scale"]
        assert scale.shape == (len(original[name]), 1)
        # GPTQ rounds to a neighbour of the neighbour at most, or so.
        error = (made[name] * scale - original[name].float()).abs()
        assert (error <= 3 * scale).all()


def test_what_the_weights_were_expanded_from_is_still_told(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / default_model.NAME
    shutil.copytree(source, folder)
    default_model.lock_of(folder).touch()

    quantize_checkpoint(str(folder), tmp_path / "out", Progress(disable=True))

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config[default_model.EXPANDED_FROM] == default_model.GGUF_FORMAT


def test_the_folder_is_one_that_is_served(source: Path, quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    scheme = config.pop("quantization_config")
    assert config.pop(QUANTIZED_FROM) == "tiny"
    assert base_names(Settings(served_model_name="served"), quantized) == {
        "served",
        "tiny-w8a8",
        "tiny",
    }

    assert config == json.loads((source / "config.json").read_text())
    assert (scheme["quant_method"], scheme["format"]) == ("compressed-tensors", "int-quantized")
    group = scheme["config_groups"]["group_0"]
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    assert group["input_activations"]["strategy"] == "token"
    index = json.loads((quantized / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(quantized).keys()
    assert {file.name for file in source.iterdir()} == {file.name for file in quantized.iterdir()}
    assert all(file.stat().st_mode & 0o044 for file in quantized.glob("*.safetensors"))
    assert leftovers(quantized.parent) == []


@pytest.mark.parametrize(
    ("model_type", "options"), [("qwen2", {}), ("qwen3", {}), ("mistral", {"sliding_window": None})]
)
def test_other_architectures(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    source = make_model(tmp_path / "model", model_type, **options)

    quantize_checkpoint(str(source), tmp_path / "out", Progress(disable=True))

    dtypes = [tensor.dtype for tensor in tensors_of(tmp_path / "out").values()]
    assert dtypes.count(torch.int8) == SHAPE["num_hidden_layers"] * LINEARS_IN_A_LAYER


def test_an_architecture_that_it_does_not_know(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")

    with pytest.raises(QuantizationFailed, match="GPT2LMHeadModel cannot be quantized: only"):
        quantize_checkpoint(str(tmp_path / "model"), tmp_path / "out", Progress(disable=True))

    assert not (tmp_path / "out").exists()


def test_an_encoder_decoder_model_is_not_sent_to_another_int8(tmp_path: Path) -> None:
    config = AutoConfig.for_model("t5", d_model=16, d_ff=16, d_kv=8, num_layers=1, vocab_size=64)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "model")

    with pytest.raises(QuantizationFailed, match="serve it with --precision bf16"):
        quantize_checkpoint(str(tmp_path / "model"), tmp_path / "out", Progress(disable=True))


def test_a_model_that_is_quantized_already(tmp_path: Path, quantized: Path) -> None:
    with pytest.raises(QuantizationFailed, match="is quantized already"):
        quantize_checkpoint(str(quantized), tmp_path / "out", Progress(disable=True))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder /nowhere"):
        quantize_checkpoint("/nowhere", tmp_path / "out", Progress(disable=True))


def test_a_damaged_model(tmp_path: Path, source: Path) -> None:
    for file in source.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:-1] if "safetensors" in file.name else content)

    with pytest.raises(ModelNotLoadable, match="is damaged"):
        quantize_checkpoint(str(tmp_path), tmp_path / "out", Progress(disable=True))


def test_a_folder_that_exists(tmp_path: Path, source: Path) -> None:
    (tmp_path / "kept").write_text("mine")

    with pytest.raises(QuantizationFailed, match="exists already: name a new folder"):
        quantize_checkpoint(str(source), tmp_path, Progress(disable=True))

    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_too_little_space(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1 << 10))

    with pytest.raises(QuantizationFailed, match=r"0 MiB left and .* are needed: free some"):
        quantize_checkpoint(str(source), tmp_path / "out", Progress(disable=True))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["weights", "tokenizer"])
def test_a_disk_that_fills_up_meanwhile(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        from safetensors import SafetensorError

        if place == "weights":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "weights":
        monkeypatch.setattr("safetensors.torch.save_file", full)
    else:
        monkeypatch.setattr(shutil, "copyfile", full)

    with pytest.raises(QuantizationFailed, match="No space left on device"):
        quantize_checkpoint(str(source), tmp_path / "out", Progress(disable=True))

    assert list(tmp_path.iterdir()) == []


# The command, which waits for a signal before its folder gets its final name.
WAITING_COMMAND = """
import pathlib, signal
pathlib.Path.rename = lambda *_: signal.pause()
from app.cli.main import cli
cli()
"""


def start_and_interrupt(source: Path, out: Path, signum: signal.Signals) -> int:
    """Run the command and signal it as soon as it writes; its exit code."""
    command = [sys.executable, "-c", WAITING_COMMAND, "quantize", str(source), "--out", str(out)]
    with subprocess.Popen(command) as running:
        while not out.with_name(f".{out.name}.partial").exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signum)
        return running.wait()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_run_leaves_nothing(
    tmp_path: Path, source: Path, signum: signal.Signals
) -> None:
    assert start_and_interrupt(source, tmp_path / "out", signum) != 0

    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_does_not_stand_in_the_way(tmp_path: Path, source: Path) -> None:
    assert start_and_interrupt(source, tmp_path / "out", signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()

    quantize_checkpoint(str(source), tmp_path / "out", Progress(disable=True))

    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_the_command_says_why_it_cannot(tmp_path: Path) -> None:
    ended = subprocess.run(
        [COMMAND, "quantize", "/nowhere", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr == (
        "softserve: there is no folder /nowhere: give a folder or a hub id to --model\n"
    )


def test_gptq_does_what_the_layer_does_better_than_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 200, generator=generator)
    # Inputs that depend on each other, as those of a language model do.
    inputs = torch.randn(2000, 20, generator=generator) @ torch.randn(20, 200, generator=generator)
    statistics = InputStatistics(200)
    for part in inputs.split(500):
        statistics.add(part)

    integers, scale = quantize(weight, statistics.hessian())

    rounded = (weight / scale).round() * scale
    outputs = inputs @ weight.T
    assert integers.dtype == torch.int8
    assert (inputs @ (integers * scale).T - outputs).norm() < 0.5 * (
        inputs @ rounded.T - outputs
    ).norm()


def test_gptq_of_weights_and_inputs_that_are_zero() -> None:
    weight = torch.zeros(4, 8)
    weight[1] = 1.0

    integers, scale = quantize(weight, InputStatistics(8).hessian())

    assert (integers * scale).allclose(weight)


def test_activations_are_rounded_to_255_steps() -> None:
    inputs = torch.tensor([[-1.0, 0.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.5, 2.25, 4.0]])

    rounded = round_activations(inputs)

    step = (inputs.amax(1) - inputs.amin(1)) / 255
    assert ((rounded - inputs).abs() <= step[:, None] / 2 + 1e-6).all()
