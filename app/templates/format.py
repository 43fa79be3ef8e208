"""Jinja2 as far as a prompt needs it, and no farther: what a template can do is bounded.

A format is parsed and refused unless it consists of texts, variables, `if`, `for` over a list that
is an input, and a few filters whose work is linear. There are no attributes, calls, arithmetic or
assignments, so that nothing can be reached and nothing can grow; loops do not nest. Jinja2's own
sandbox is below that, and the length and the time of what is rendered are limited as well.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InvalidRequest, TemplateRejected

MAX_NODES = 200
MAX_DEPTH = 16
MAX_ITEMS = 1000
MAX_SEPARATOR_LENGTH = 32
MAX_RENDERED_LENGTH = 1 << 20
MAX_RENDER_SECONDS = 2.0

PERMITTED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Filter),
    *(nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    nodes.For,
)
WHAT_IS_PERMITTED = (
    "a format may hold texts, variables, if, for over a list, and the filters upper, lower, "
    "capitalize, title, trim, join and length"
)


class Unrenderable(Exception):
    """These values cannot be put into a format; the message says why."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unrenderable("a filter for texts is given a list: use join first")
    return value


def _join(value: Any, separator: str = "") -> str:
    if not isinstance(value, list):
        raise Unrenderable("join needs a list of texts")
    return separator.join(value)


def _printable(value: Any) -> Any:
    if isinstance(value, list):
        raise Unrenderable("a list is written as it is: use join, or for")
    return value


FILTERS: dict[str, Any] = {
    "upper": lambda value: _text(value).upper(),
    "lower": lambda value: _text(value).lower(),
    "capitalize": lambda value: _text(value).capitalize(),
    "title": lambda value: _text(value).title(),
    "trim": lambda value: _text(value).strip(),
    "length": len,
    "join": _join,
}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        # A prompt is no HTML.
        autoescape=False,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    environment.globals.clear()
    environment.tests.clear()
    environment.filters.clear()
    environment.filters.update(FILTERS)
    return environment


ENVIRONMENT = _environment()


class Format:
    """A format whose work is bounded.

    Raises:
        TemplateRejected: it is not one; `param` is `field`.
    """

    def __init__(self, source: str, variables: Collection[str], field: str) -> None:
        self._field = field
        checker = _checked(source, frozenset(variables), field)
        self.used, self._iterated = frozenset(checker.used), frozenset(checker.iterated)
        self._template = ENVIRONMENT.from_string(source)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for these values.

        Raises:
            InvalidRequest: a list where a text belongs, or the reverse, or it gets too long.
        """
        _check_items(values)
        try:
            return "".join(self._pieces(values))
        except Unrenderable as error:
            raise InvalidRequest(
                f"the inputs cannot be put into {self._field}: {error}", param="inputs"
            ) from error

    def _pieces(self, values: Mapping[str, Any]) -> Iterator[str]:
        for name in self._iterated:
            if not isinstance(values[name], list):
                raise Unrenderable(f"it has a loop over {name}, which has to be a list of texts")
        deadline, length = time.monotonic() + MAX_RENDER_SECONDS, 0
        for piece in self._template.generate(values):
            length += len(piece)
            if length > MAX_RENDERED_LENGTH:
                raise Unrenderable(f"it gets longer than {MAX_RENDERED_LENGTH:,} characters")
            if time.monotonic() > deadline:
                raise Unrenderable(f"it takes longer than {MAX_RENDER_SECONDS:g} seconds")
            yield piece


def _check_items(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, list) and len(value) > MAX_ITEMS:
            raise InvalidRequest(
                f"the input {name} has {len(value):,} texts and the limit is {MAX_ITEMS:,}: "
                "send fewer",
                param="inputs",
            )


def _checked(source: str, variables: frozenset[str], field: str) -> "_Checker":
    """What was seen in a format. Raises `TemplateRejected`."""
    try:
        tree = ENVIRONMENT.parse(source)
    except TemplateSyntaxError as error:
        raise TemplateRejected(
            f"{field} is not Jinja2: {error.message} (line {error.lineno})", param=field
        ) from error
    except RecursionError as error:
        raise TemplateRejected(
            f"{field} is nested too deeply: make it flat", param=field
        ) from error
    checker = _Checker(variables, field)
    checker.check(tree, variables, in_loop=False, depth=0)
    return checker


class _Checker:
    def __init__(self, variables: frozenset[str], field: str) -> None:
        self._variables = variables
        self._field = field
        self._num_nodes = 0
        self.used: set[str] = set()
        self.iterated: set[str] = set()

    def check(self, node: nodes.Node, known: frozenset[str], *, in_loop: bool, depth: int) -> None:
        """`known` are the variables that have a value there."""
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self._refusal(node, "is too large or nested too deeply: make it simpler")
        if not isinstance(node, PERMITTED):
            what = type(node).__name__.lower()
            raise self._refusal(node, f"has something it may not use ({what}): {WHAT_IS_PERMITTED}")
        match node:
            case nodes.Name():
                self._check_name(node, known)
            case nodes.Filter():
                self._check_filter(node)
            case nodes.For():
                item = self._check_for(node, in_loop)
                self.check(node.iter, known, in_loop=in_loop, depth=depth + 1)
                known, in_loop = known | {item}, True
                for child in (*node.body, *node.else_, *([node.test] if node.test else [])):
                    self.check(child, known, in_loop=in_loop, depth=depth + 1)
                return
        for child in node.iter_child_nodes():
            self.check(child, known, in_loop=in_loop, depth=depth + 1)

    def _check_name(self, node: nodes.Name, known: frozenset[str]) -> None:
        if node.name not in known:
            raise self._refusal(
                node,
                f"uses {node.name[:64]!r}, which is no input variable: add it to input_variables, "
                f"or use {', '.join(sorted(self._variables))}",
            )
        self.used.add(node.name)

    def _check_filter(self, node: nodes.Filter) -> None:
        if node.name not in FILTERS or node.node is None:
            raise self._refusal(node, f"has the filter {node.name[:64]!r}: {WHAT_IS_PERMITTED}")
        if node.kwargs or node.dyn_args or node.dyn_kwargs:
            raise self._refusal(node, f"gives {node.name} arguments that it does not have")
        if not node.args:
            return
        (separator, *others) = node.args
        if (
            node.name != "join"
            or others
            or not isinstance(separator, nodes.Const)
            or not isinstance(separator.value, str)
            or len(separator.value) > MAX_SEPARATOR_LENGTH
        ):
            raise self._refusal(
                node,
                f"gives {node.name} arguments that it does not have: only join has one, a text of "
                f"at most {MAX_SEPARATOR_LENGTH} characters",
            )

    def _check_for(self, node: nodes.For, in_loop: bool) -> str:
        """The name of the loop's own variable."""
        if in_loop:
            raise self._refusal(node, "has a loop in a loop: give one list of whole texts instead")
        if (
            not isinstance(node.target, nodes.Name)
            or not isinstance(node.iter, nodes.Name)
            or node.recursive
        ):
            raise self._refusal(
                node, "has a loop over something else than an input: write for ITEM in INPUT"
            )
        self.iterated.add(node.iter.name)
        return node.target.name

    def _refusal(self, node: nodes.Node, problem: str) -> TemplateRejected:
        return TemplateRejected(f"{self._field} {problem} (line {node.lineno})", param=self._field)
