"""The adapters that ship, and the examples that they were made from and are measured on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.adapters.validation import validate
from app.engine.protocol import Architecture, ModuleShape
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterKind
from softserve.schema.server import Limits

ADAPTERS = Path(__file__).resolve().parents[3] / "adapters"
SHIPPED: dict[str, AdapterKind] = {
    "dialogue-summary-lora": "lora",
    "support-intent-lora": "lora",
    "support-intent-prompt": "soft_prompt",
}
BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
INTENTS = ["account", "billing", "delivery", "praise", "technical"]

LAYER_SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}
SMOLLM2_135M = Architecture(
    names=frozenset({BASE_MODEL, "SmolLM2-135M-Instruct"}),
    hidden_size=576,
    modules={
        f"model.layers.{layer}.{module}": ModuleShape("linear", *shape)
        for layer in range(30)
        for module, shape in LAYER_SHAPES.items()
    },
)


def examples(name: str) -> list[dict[str, str]]:
    lines = (ADAPTERS / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def config(name: str) -> dict[str, Any]:
    loaded = json.loads((ADAPTERS / name / CONFIG_FILE).read_bytes())
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("support-intent.training", 200),
        ("support-intent.held-out", 80),
        ("dialogue-summary.training", 100),
        ("dialogue-summary.held-out", 30),
    ],
)
def test_each_line_is_a_prompt_and_its_completion(name: str, count: int) -> None:
    lines = examples(name)
    assert len(lines) == count
    for line in lines:
        assert line.keys() == {"prompt", "completion"}
        assert line["completion"] == " " + line["completion"].strip()


@pytest.mark.parametrize("name", ["support-intent.training", "support-intent.held-out"])
def test_intents(name: str) -> None:
    """Balanced, and no message names its own intent."""
    lines = examples(name)
    counts = Counter(line["completion"] for line in lines)
    assert counts == {f" {intent}": len(lines) // len(INTENTS) for intent in INTENTS}
    for line in lines:
        assert line["prompt"].startswith("Message: ")
        message, _, end = line["prompt"].rpartition("\n")
        assert end == "Intent:"
        assert line["completion"].strip() not in message.lower()


@pytest.mark.parametrize("name", ["dialogue-summary.training", "dialogue-summary.held-out"])
def test_dialogues(name: str) -> None:
    """Four to ten turns of two or three speakers, of whom the summary names one at least."""
    for line in examples(name):
        dialogue, _, end = line["prompt"].rpartition("\n\n")
        assert end == "Summary:"
        turns = dialogue.split("\n")
        speakers = {turn.partition(": ")[0] for turn in turns}
        assert 4 <= len(turns) <= 10, dialogue
        assert 2 <= len(speakers) <= 3, dialogue
        assert any(speaker in line["completion"] for speaker in speakers), dialogue
        assert line["completion"].endswith(".")


@pytest.mark.parametrize("task", ["support-intent", "dialogue-summary"])
def test_held_out_examples_are_not_trained_on(task: str) -> None:
    trained, held_out = examples(f"{task}.training"), examples(f"{task}.held-out")
    prompts = [_words(line["prompt"]) for line in trained + held_out]
    assert len(set(prompts)) == len(prompts)
    for line in held_out:
        nearest = max(_similarity(line["prompt"], other["prompt"]) for other in trained)
        assert nearest < 0.5, line["prompt"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().split())


def _similarity(one: str, other: str) -> float:
    return len(_words(one) & _words(other)) / len(_words(one) | _words(other))


def test_these_ship() -> None:
    folders = {path.parent.name for path in ADAPTERS.glob(f"*/{CONFIG_FILE}")}
    assert folders == SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_folder_holds_two_small_files(name: str) -> None:
    files = {path.name: path.stat().st_size for path in (ADAPTERS / name).iterdir()}
    assert files.keys() == {CONFIG_FILE, WEIGHTS_FILE}
    assert sum(files.values()) < 2_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_holds_no_path(name: str) -> None:
    paths = ("/", "~", ".", "\\")
    assert config(name)["base_model_name_or_path"] == BASE_MODEL
    assert [text for text in _texts(config(name)) if text.startswith(paths)] == []


def _texts(value: Any) -> list[str]:
    """Every text in a JSON value."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for part in value.values() for text in _texts(part)]
        case list():
            return [text for part in value for text in _texts(part)]
    return []


@pytest.mark.parametrize(("name", "kind"), SHIPPED.items())
def test_a_shipped_adapter_is_valid(name: str, kind: AdapterKind) -> None:
    version = validate(ADAPTERS / name, SMOLLM2_135M, Limits())
    assert (version.kind, version.base_model) == (kind, BASE_MODEL)
