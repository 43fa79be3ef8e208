"""Templates as files: plain YAML, JSONL beside it, and everything else refused with a sentence."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import TemplateRejected
from app.templates.source import MAX_TEMPLATE_BYTES, parse_jsonl, parse_yaml, read_template, yaml_of
from softserve.schema.templates import Template

PLAIN = """
input_variables: [text]
example_format: "{{ text }}: {{ output }}"
query_format: "{{ text }}:"
"""


def read(folder: Path, text: str, **files: str) -> Template:
    (folder / "a.yaml").write_text(text)
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text(content)
    return read_template(folder / "a.yaml")


def rejected(folder: Path, text: str, **files: str) -> str:
    with pytest.raises(TemplateRejected) as raised:
        read(folder, text, **files)
    return raised.value.message


def test_a_template(tmp_path: Path) -> None:
    template = read(tmp_path, PLAIN + "stop: END\nexamples: [{text: a, output: 'yes'}]")
    assert isinstance(template, Template)
    assert (template.stop, template.examples) == (["END"], [{"text": "a", "output": "yes"}])


def test_a_version_is_the_content_however_it_is_written(tmp_path: Path) -> None:
    inline = read(tmp_path, PLAIN + 'examples: [{output: b, text: a}]\nseparator: "\\n\\n"\n')
    nothing = read(tmp_path, PLAIN + "examples_file:\nexamples:\nstop: null\nseparator: ~\n")
    assert nothing == read(tmp_path, PLAIN)
    beside = read(tmp_path, PLAIN + "examples_file: x.jsonl", x='{"text": "a", "output": "b"}\n')
    other = read(tmp_path, PLAIN + "examples: [{output: c, text: a}]")
    assert isinstance(inline, Template)
    assert isinstance(beside, Template)
    assert isinstance(other, Template)
    assert inline.digest == beside.digest != other.digest


SOME = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n\r"), max_size=9
)
TRICKY = st.sampled_from(
    ["yes", "null", "1e3", "2024-01-01", "~", "|", " a\n", "\n a", "a: b", "#", "&a"]
)


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(
    instruction=SOME | TRICKY,
    separator=SOME,
    examples=st.lists(
        st.fixed_dictionaries({"text": TRICKY | st.lists(SOME, max_size=2), "output": SOME}),
        max_size=2,
    ),
)
def test_a_template_as_yaml_is_the_same_version(
    instruction: str, separator: str, examples: list[dict[str, Any]]
) -> None:
    fields = parse_yaml(PLAIN.encode()) | {"instruction": instruction, "separator": separator}
    template = Template.model_validate(fields | {"examples": examples * 2})
    again = Template.model_validate(parse_yaml(yaml_of(template).encode()))
    assert again == template
    assert again.digest == template.digest


def test_a_template_as_yaml_can_be_read() -> None:
    fields = parse_yaml(PLAIN.encode()) | {"instruction": "One.\nTwo: 2.\n", "labels": ["yes"]}
    assert yaml_of(Template.model_validate(fields)) == (
        "instruction: |\n  One.\n  Two: 2.\ninput_variables:\n- text\n"
        "example_format: '{{ text }}: {{ output }}'\nquery_format: '{{ text }}:'\n"
        "labels:\n- 'yes'\n"
    )


def _laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, after in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_laughs(), "an anchor or an alias"),
        ("a: &a b", "an anchor or an alias"),
        ("a: *b", "an anchor or an alias"),
        ("<<: *b", "an anchor or an alias"),
        ("a: !!python/object/apply:os.system [ls]", "has a tag"),
        ("a: !include x", "has a tag"),
        ("[" * 1000, "nested too deeply"),
        ("a: " + "{b: " * 100, "nested too deeply"),
        ("- " * 1000 + "x", "nested too deeply"),
        ("a: 1\n---\na: 2", "second document"),
        ("a: 1\na: 2", "'a' is there twice (line 2)"),
        ("1: 2", "a key in line 1 is no text"),
        ("[1]: 2", "a key in line 1 is no text"),
        ("? {a: b}\n: 2", "a key in line 1 is no text"),
        ("- a\n- b", "a mapping of fields"),
        ("just text", "a mapping of fields"),
        ("", "a mapping of fields"),
        ("a: [1", "not YAML"),
        ("a: b: c", "not YAML"),
        ("a: \x00", "not YAML"),
        ("x" * (MAX_TEMPLATE_BYTES + 1), "at most 262,144 bytes"),
    ],
)  # fmt: skip
def test_what_is_not_plain(tmp_path: Path, text: str, message: str) -> None:
    assert message in rejected(tmp_path, text)


def test_many_keys_take_no_time(tmp_path: Path) -> None:
    keys = "\n".join(f"k{i}: 1" for i in range(20_000))
    assert rejected(tmp_path, PLAIN + keys).startswith("there is no field k0; ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", "there is no field colour"),
        ("instruction: 7", "instruction: must be a valid string"),
        ("labels: [yes, no]", "labels.0: must be a valid string"),
        ("examples: [{text: 2024-01-01, output: 5}]", "must be a text or a list of texts"),
        ("max_shots: -1", "max_shots"),
        ("temperature: hot", "temperature"),
        ("selection: best", "selection: must be 'first'"),
        ("examples_file: ../x.jsonl", "a .jsonl file beside"),
        ("examples_file: /etc/passwd", "a .jsonl file beside"),
        ("examples_file: 7", "a .jsonl file beside"),
        ("examples_file: none.jsonl", "none.jsonl is not there"),
        ("examples_file: x.jsonl\nexamples: []", "leave one out"),
        ("examples_file: broken.jsonl", "broken.jsonl: line 2 is not JSON"),
        ("examples_file: numbers.jsonl", "numbers.jsonl: line 1: it: must be a valid dictionary"),
    ],
)
def test_wrong_fields(tmp_path: Path, text: str, message: str) -> None:
    files = {"broken": '{"a": "b"}\n{', "numbers": "1\n", "x": ""}
    assert message in rejected(tmp_path, PLAIN + text, **files)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    """As in a volume of Kubernetes."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "..2026" / "a.yaml").write_text(PLAIN + "examples_file: x.jsonl")
    (tmp_path / "..2026" / "x.jsonl").write_text('{"text": "a", "output": "b"}')
    for name in ("a.yaml", "x.jsonl"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    assert read_template(tmp_path / "a.yaml").examples == [{"text": "a", "output": "b"}]


def test_a_link_outside_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(TemplateRejected):
        read_template(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("/etc/passwd")
    with pytest.raises(TemplateRejected, match="a link that leads out of its folder"):
        read_template(tmp_path / "link.yaml")


def test_jsonl() -> None:
    rows: list[Any] = [{"a": "1"}, {"a": "2"}]
    text = "\n\n".join(map(json.dumps, rows)).encode()
    assert parse_jsonl(text, "x.jsonl") == {1: rows[0], 3: rows[1]}
    for bad in (b"{" * 100_000, b"\xff", b"1\n" * 1001, b"x" * (1 << 20 | 1)):
        with pytest.raises(TemplateRejected):
            parse_jsonl(bad, "x.jsonl")


@pytest.mark.parametrize("row", ['{"a": "x\u2028y\u2029z\x85"}', '{"a":\r"x"}'])
def test_what_ends_no_line_of_jsonl(row: str) -> None:
    text = f'\ufeff{{"a": "b"}}\r\n{row}\n'
    assert parse_jsonl(text.encode(), "x.jsonl") == {1: {"a": "b"}, 2: json.loads(row)}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"a": "x\x0cy"}', " is not JSON (Invalid control character at, column 9)"),
        ('{"a": null}', ": a: must be a text or a list of texts"),
        ('{"a": "\\u0000"}', ": a: the control character U+0000"),
    ],
)
def test_an_example_is_refused_by_its_line(tmp_path: Path, row: str, why: str) -> None:
    rows = f'{{"a": "b"}}\n\n{row}\n'
    assert f"x.jsonl: line 3{why}" in rejected(tmp_path, PLAIN + "examples_file: x.jsonl", x=rows)


def test_not_utf_8() -> None:
    with pytest.raises(TemplateRejected):
        parse_yaml(b"a: \xff\xfe")
