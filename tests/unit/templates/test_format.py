"""What a format may do, and that everything else is refused before or while it runs."""

import time

import pytest

from app.errors import InvalidRequest, TemplateRejected
from app.templates.format import MAX_ITEMS, MAX_NODES, MAX_RENDERED_LENGTH, Format

VARIABLES = ["text", "names"]


def render(source: str, **values: object) -> str:
    return Format(source, VARIABLES, "query_format").render(
        {"text": "a b", "names": ["x", "y"], **values}
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", "plain"),
        ("{{ text }}", "a b"),
        ("{{ text | upper }}!", "A B!"),
        ("{{ text | title }} {{ text | capitalize }} {{ 'A' | lower }}", "A B A b a"),
        ("{{ names | join(', ') }}", "x, y"),
        ("{{ names | join }}", "xy"),
        ("{{ names | length }}", "2"),
        ("{% for name in names %}- {{ name }}\n{% endfor %}", "- x\n- y\n"),
        ("{% for name in names if name == 'y' %}{{ name }}{% endfor %}", "y"),
        ("{% if text == 'a b' and not names == text %}yes{% else %}no{% endif %}", "yes"),
        ("{{ 'long' if text | length > 2 else 'short' }}", "long"),
        ("ends with a newline\n", "ends with a newline\n"),
        ("{# a comment #}<b>{{ text }}</b>", "<b>a b</b>"),
    ],
)
def test_what_is_permitted(source: str, expected: str) -> None:
    assert render(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ text.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ text['x'] }}",
        "{{ text[0:1] }}",
        "{{ text.upper() }}",
        "{{ range(10) }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in 'abc' %}x{% endfor %}",
        "{% for a in names %}{% for b in names %}x{% endfor %}{% endfor %}",
        "{% for a in names recursive %}{{ loop(names) }}{% endfor %}",
        "{% for a in names %}{{ loop.index }}{% endfor %}",
        "{{ text * 1000000000 }}",
        "{{ 2 ** 1000000 }}",
        "{{ text ~ text }}",
        "{{ text + text }}",
        "{% set x = text %}{{ x }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'x' %}",
        "{% import 'x' as x %}",
        "{% extends 'x' %}",
        "{% block b %}{% endblock %}",
        "{% filter upper %}x{% endfilter %}",
        "{{ text | replace('a', 'aaaa') }}",
        "{{ text | attr('__class__') }}",
        "{{ names | join(text) }}",
        "{{ names | join('" + "x" * 33 + "') }}",
        "{{ names | join(', ', 1) }}",
        "{{ names | map('upper') }}",
        "{{ text | indent(100000000) }}",
        "{{ text is defined }}",
        "{{ [text, text] }}",
        "{{ {'a': text} }}",
        "{{ lipsum }}",
        "{{ cycler }}",
        "{{ self }}",
        "{{ unknown }}",
        "{% for name in names %}{% endfor %}{{ name }}",
        "{{ text",
        "{% if %}",
        "{{ " + "(" * 2000 + "text" + ")" * 2000 + " }}",
        "{{ text }}" * (MAX_NODES + 1),
        "{% if text %}" * 40 + "x" + "{% endif %}" * 40,
        "{{ " + "not " * 100 + "text }}",
    ],
)
def test_what_is_refused(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateRejected) as raised:
        Format(source, VARIABLES, "query_format")
    assert raised.value.param == "query_format"
    assert raised.value.message.startswith("query_format ")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("{{ text }}", {"text": ["a list"]}),
        ("{{ names | join }}", {"names": "a text"}),
        ("{{ names | upper }}", {}),
        ("{% for name in names %}x{% endfor %}", {"names": "a text"}),
        ("{{ names | join }}", {"names": ["x"] * (MAX_ITEMS + 1)}),
        ("{{ text }}" * 20, {"text": "x" * (MAX_RENDERED_LENGTH // 10)}),
        ("{% for name in names %}{{ text }}{% endfor %}",
         {"names": ["x"] * MAX_ITEMS, "text": "x" * 100_000}),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(source: str, values: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        render(source, **values)
    assert raised.value.param == "inputs"


def test_a_message_says_where_and_what() -> None:
    with pytest.raises(TemplateRejected) as raised:
        Format("one\n{{ colour }}", ["text"], "example_format")
    assert raised.value.message == (
        "example_format uses 'colour', which is no input variable: add it to input_variables, or "
        "use text (line 2)"
    )
