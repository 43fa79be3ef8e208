"""From a template's text to a template. What is read is not trusted.

YAML here is a tree of plain values: no anchors and aliases, with which a few lines can stand for
gigabytes, no tags, which can name Python objects, and no dates, which nobody means.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import TypeAdapter, ValidationError

from app.adapters.roots import LeadsOutside, NotAFile, open_below
from app.errors import TemplateRejected
from app.jsonl import NotJson, lines_of, value_of
from softserve.schema.templates import MAX_EXAMPLES, Example, Template

MAX_TEMPLATE_BYTES = 1 << 18
MAX_EXAMPLES_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_REASONS = 3
EXAMPLES_FILE = "examples_file"
# A file beside the template's.
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.jsonl")


_EXAMPLE: TypeAdapter[Example] = TypeAdapter(Example)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values, each key once."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise TemplateRejected(f"a key in line {line} is no text: put it in quotes")
            if key in seen:
                raise TemplateRejected(f"{key[:64]!r} is there twice (line {line}): remove one")
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def parse_yaml(text: bytes) -> dict[str, Any]:
    """The fields of a template in YAML, unchecked.

    Raises:
        TemplateRejected: it is too large, not YAML, or not plain.
    """
    if len(text) > MAX_TEMPLATE_BYTES:
        raise TemplateRejected(
            f"a template has at most {MAX_TEMPLATE_BYTES:,} bytes and this one {len(text):,}: "
            "shorten it, or move its examples into a JSONL file"
        )
    try:
        _check_events(text)
        content = yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)
    except yaml.YAMLError as error:
        raise TemplateRejected(f"it is not YAML: {_where(error)}") from error
    except (ValueError, RecursionError) as error:
        raise TemplateRejected("it is not YAML: a value cannot be read") from error
    if not isinstance(content, dict):
        raise TemplateRejected("a template is a mapping of fields, as `instruction: ...`")
    if content.get(EXAMPLES_FILE, "") is None:
        del content[EXAMPLES_FILE]
    return content


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """What `_Loader` takes: no aliases. A text of several lines is a block, where that can be."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def yaml_of(template: Template) -> str:
    """A file with this template, which is of the same version."""
    fields = template.model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _check_events(text: bytes) -> None:
    """Refuse what is not plain before anything is made of it."""
    depth = num_documents = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise TemplateRejected(f"it has an anchor or an alias (line {line}): write it out")
        if getattr(event, "tag", None):
            raise TemplateRejected(f"it has a tag (line {line}): leave it out")
        if isinstance(event, yaml.DocumentStartEvent):
            num_documents += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or num_documents > 1:
            raise TemplateRejected(
                f"it is nested too deeply or has a second document (line {line}): write one "
                "mapping of fields"
            )


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be read"
    return f"{problem} (line {mark.line + 1})" if mark else str(problem)


def validate_template(fields: Mapping[str, Any]) -> Template:
    """The template with these fields. Raises `TemplateRejected`."""
    if EXAMPLES_FILE in fields:
        raise TemplateRejected(
            f"{EXAMPLES_FILE} is for files in --template-dir: give the examples themselves",
            param=EXAMPLES_FILE,
        )
    try:
        return Template.model_validate(fields)
    except ValidationError as error:
        raise TemplateRejected(_reasons(error)) from error


def _reasons(error: ValidationError) -> str:
    reasons = []
    for each in error.errors()[:MAX_REASONS]:
        where = ".".join(str(part)[:64] for part in each["loc"]) or "it"
        if each["type"] == "extra_forbidden":
            reasons.append(f"there is no field {where}")
        elif each["type"] == "missing":
            reasons.append(f"{where} is missing")
        else:
            reasons.append(f"{where}: {each['msg'].replace('Input should be', 'must be')}")
    return "; ".join(reasons)


def parse_jsonl(text: bytes, where: str) -> dict[int, Any]:
    """The values of a JSONL file, by line. Raises `TemplateRejected`."""
    if len(text) > MAX_EXAMPLES_BYTES:
        raise TemplateRejected(f"{where} is above {MAX_EXAMPLES_BYTES:,} bytes: keep fewer")
    rows: dict[int, Any] = {}
    for number, line in lines_of(text):
        try:
            rows[number] = value_of(line)
        except NotJson as error:
            raise TemplateRejected(f"{where}: line {number} is {error}: correct it") from error
        if len(rows) > MAX_EXAMPLES:
            raise TemplateRejected(f"{where} has more than {MAX_EXAMPLES:,} lines: keep fewer")
    return rows


def read_template(file: Path) -> Template:
    """The template in a file, with the examples of the file that it names.

    Raises:
        TemplateRejected: it is none.
        OSError: it cannot be read.
    """
    fields = parse_yaml(_read(file, MAX_TEMPLATE_BYTES))
    if EXAMPLES_FILE in fields:
        name, content = _read_examples(file.parent, fields)
        del fields[EXAMPLES_FILE]
        rows = parse_jsonl(content, name)
        _check_examples(rows, name)
        fields["examples"] = list(rows.values())
    return validate_template(fields)


def _check_examples(rows: Mapping[int, Any], where: str) -> None:
    """Examples of a file are refused by its lines, not by their place in the template."""
    for number, row in rows.items():
        try:
            _EXAMPLE.validate_python(row)
        except ValidationError as error:
            raise TemplateRejected(
                f"{where}: line {number}: {_reasons(error)}", param=EXAMPLES_FILE
            ) from error


def _read_examples(folder: Path, fields: Mapping[str, Any]) -> tuple[str, bytes]:
    """The name and the content of the file that holds the examples."""
    name = fields[EXAMPLES_FILE]
    if not isinstance(name, str) or FILE_NAME.fullmatch(name) is None:
        raise TemplateRejected(
            f"{EXAMPLES_FILE} is the name of a .jsonl file beside the template",
            param=EXAMPLES_FILE,
        )
    if fields.get("examples") is not None:
        raise TemplateRejected(
            f"it has examples and {EXAMPLES_FILE}: leave one out", param="examples"
        )
    try:
        return name, _read(folder / name, MAX_EXAMPLES_BYTES)
    except FileNotFoundError as error:
        raise TemplateRejected(f"{name} is not there: put it beside the template") from error


def _read(file: Path, max_bytes: int) -> bytes:
    """A regular file's content; of one that is too large only one byte more than may be.

    It may be a link to one in the same folder or below, as in a volume of Kubernetes.
    """
    try:
        with open_below(file, [file.parent]) as opened:
            return opened.read(max_bytes + 1)
    except LeadsOutside as error:
        raise TemplateRejected(
            f"{file.name} cannot be read, as a link that leads out of its folder: put the file "
            "itself there"
        ) from error
    except NotAFile as error:
        raise TemplateRejected(
            f"{file.name} is not a regular file: put the file itself there"
        ) from error
