"""The templates that ship."""

import json
from pathlib import Path

import pytest

from app.templates.compilation import CompiledTemplate
from app.templates.source import read_template
from softserve.schema.templates import OUTPUT, Template

FOLDER = Path(__file__).resolve().parents[3] / "templates"
SHIPPED = {
    *("dialogue-summary", "dialogue-summary-lora", "named-entities", "passage-questions"),
    *("sentiment", "text-to-json", "translation"),
}
SPECIAL_TOKENS = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}


def read(name: str) -> Template:
    return read_template(FOLDER / f"{name}.yaml")


def test_those_are_all() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_each_is_valid_and_has_examples(name: str) -> None:
    template = read(name)
    compiled = CompiledTemplate(template, SPECIAL_TOKENS)
    assert len(compiled.examples) >= 6
    assert template.description
    assert template.stop or template.adapter
    outputs = [example[OUTPUT] for example in template.examples]
    assert not any(stop in output for stop in template.stop for output in outputs)


def test_the_json_is_json() -> None:
    for example in read("text-to-json").examples:
        assert sorted(json.loads(example[OUTPUT])) == ["city", "item", "quantity"]


def test_the_labels_alternate() -> None:
    """After several examples of one label in a row, a small model answers with that one only."""
    outputs = [example[OUTPUT] for example in read("sentiment").examples]
    assert outputs.count("positive") == outputs.count("negative")


def test_an_answer_stands_in_its_passage() -> None:
    for example in read("passage-questions").examples:
        assert example["passage"]
        assert example["question"].endswith("?")
