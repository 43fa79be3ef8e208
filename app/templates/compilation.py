"""From a template to prompts: everything about it is checked once, what is constant made once.

The plot of a prompt: instruction, examples, query, with the separator in between; or each in a
message of its own. So all prompts of a template that use the same examples begin alike, and share
that part of the prefix cache.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from app.engine.generation import Chat
from app.errors import InvalidRequest, TemplateRejected
from app.templates.format import Format
from app.templates.selection import Similarity
from softserve.schema.prompts import Role
from softserve.schema.templates import OUTPUT, Example, Inputs, Template

RESERVED = {OUTPUT, "self", "loop", "super", "caller", "varargs", "kwargs", "true", "false", "none"}


@dataclass(frozen=True, slots=True)
class Shot:
    """An example in a prompt: its text, which begins with the query where that is told apart."""

    text: str
    query: str = ""

    @property
    def answer(self) -> str:
        return self.text[len(self.query) :].strip()


@dataclass(frozen=True)
class ExampleSet:
    """Examples, and each in a prompt."""

    examples: tuple[Example, ...]
    shots: tuple[Shot, ...]

    @cached_property
    def similarity(self) -> Similarity:
        """Of the examples' inputs."""
        return Similarity([text_of_inputs(example) for example in self.examples])

    def __len__(self) -> int:
        return len(self.examples)


class CompiledTemplate:
    """A valid template.

    Raises:
        TemplateRejected: it is not; `param` is the field at fault.
    """

    def __init__(self, template: Template, special_tokens: Collection[str]) -> None:
        self.template = template
        self._special_tokens = special_tokens
        self._check_variables()
        variables = template.input_variables
        self._example_format = Format(
            template.example_format, [*variables, OUTPUT], "example_format"
        )
        self._query_format = Format(template.query_format, variables, "query_format")
        self._check_use()
        self._check_labels()
        self._check_chat()
        for field in ("instruction", "system", "separator", "example_format", "query_format"):
            self._check_plain(getattr(template, field) or "", field)
        self.examples = self.example_set(template.examples)

    def example_set(self, examples: Sequence[Example]) -> ExampleSet:
        """Examples in the template's format: its own, or those of a request.

        Raises:
            TemplateRejected: one lacks a field, has another, or cannot be rendered.
        """
        return ExampleSet(
            tuple(examples),
            tuple(self._example(number, example) for number, example in enumerate(examples)),
        )

    def check_inputs(self, inputs: Inputs, where: str = "inputs") -> None:
        """Raises `InvalidRequest` for a missing or a surplus input."""
        wanted = self.template.input_variables
        if problem := _difference(inputs, wanted):
            raise InvalidRequest(f"{where} {problem}", param="inputs")

    def query(self, inputs: Inputs) -> str:
        """The end of a prompt. Raises `InvalidRequest`."""
        text = self._query_format.render(inputs)
        if special := self._special_token_in(text):
            raise InvalidRequest(
                f"the inputs hold {special!r}, which the model takes for a special token: "
                "remove it",
                param="inputs",
            )
        return text

    def prompt(self, shots: Iterable[Shot], query: str) -> str | Chat:
        """What the model is given: a text, or messages for its chat template."""
        system = self.template.system
        if self.template.examples_as_turns:
            instruction = self.template.instruction or system
            turns: list[tuple[Role, str]] = []
            for shot in shots:
                turns += [("user", shot.query), ("assistant", shot.answer)]
            return Chat.of(("system", instruction), *turns, ("user", query))
        texts = [*self._head(), *(shot.text for shot in shots), query]
        text = self.template.separator.join(texts)
        if self.template.use_chat_template:
            return Chat.of(("system", system), ("user", text))
        return text

    def shared_prefix(self, shots: Iterable[Shot]) -> str | Chat:
        """What all prompts with these examples begin with."""
        return self.prompt(shots, "")

    def continuations(self, inputs: Inputs, query: str) -> list[str]:
        """The text of each label as it follows the query.

        Raises:
            InvalidRequest: an example of these inputs does not begin as their query does.
        """
        return [self._continuation(inputs, query, label) for label in self.template.labels]

    def _continuation(self, inputs: Inputs, query: str, label: str) -> str:
        example = self._example_format.render({**inputs, OUTPUT: label})
        if not example.startswith(query) or example == query:
            raise InvalidRequest(
                "with labels or examples_as_turns, an example has to begin exactly as its query "
                "does: make example_format query_format and what follows it",
                param="example_format",
            )
        rest = example[len(query) :]
        # In a chat, the answer is a message of its own.
        return rest.strip() if self.template.use_chat_template else rest

    def _head(self) -> list[str]:
        return [self.template.instruction] if self.template.instruction else []

    def _example(self, number: int, example: Example) -> Shot:
        where = f"example {number + 1}"
        wanted = [*self.template.input_variables, OUTPUT]
        if problem := _difference(example, wanted):
            raise TemplateRejected(f"{where} {problem}", param="examples")
        if not isinstance(example[OUTPUT], str):
            raise TemplateRejected(f"{where} has an output that is no text", param="examples")
        if self.template.labels and example[OUTPUT] not in self.template.labels:
            raise TemplateRejected(
                f"{where} has the output {example[OUTPUT][:64]!r}, which is not among the labels: "
                "add it to them, or correct it",
                param="examples",
            )
        try:
            shot = self._shot(example)
        except InvalidRequest as error:
            raise TemplateRejected(f"{where}: {error.message}", param="examples") from error
        self._check_plain(shot.text, where, "examples")
        return shot

    def _shot(self, example: Example) -> Shot:
        """Raises `InvalidRequest`."""
        text = self._example_format.render(example)
        if not self.template.labels and not self.template.examples_as_turns:
            return Shot(text)
        inputs = {name: example[name] for name in self.template.input_variables}
        query = self._query_format.render(inputs)
        self._continuation(inputs, query, example[OUTPUT])
        return Shot(text, query)

    def _check_variables(self) -> None:
        names = self.template.input_variables
        for name in names:
            if name.lower() in RESERVED:
                raise TemplateRejected(
                    f"{name} cannot be the name of an input: choose another",
                    param="input_variables",
                )
        if len(set(names)) < len(names):
            raise TemplateRejected(
                "input_variables has a name twice: remove one", param="input_variables"
            )

    def _check_use(self) -> None:
        """An input that nothing uses would be accepted and ignored."""
        for name in self.template.input_variables:
            if name not in self._query_format.used:
                raise TemplateRejected(
                    f"query_format does not use the input {name}: use it, or take it out of "
                    "input_variables",
                    param="query_format",
                )
        if OUTPUT not in self._example_format.used:
            raise TemplateRejected(
                "example_format does not use output: put {{ output }} where the answer stands",
                param="example_format",
            )

    def _check_chat(self) -> None:
        template = self.template
        if not template.use_chat_template:
            for field in ("system", "examples_as_turns"):
                if getattr(template, field):
                    raise TemplateRejected(
                        f"{field} needs the model's chat template: set use_chat_template to true",
                        param=field,
                    )
        if not template.examples_as_turns:
            return
        if template.instruction and template.system is not None:
            raise TemplateRejected(
                "with examples_as_turns the instruction is the system message: leave system out",
                param="system",
            )
        if template.separator != Template.model_fields["separator"].default:
            raise TemplateRejected(
                "separator has no effect with examples_as_turns: leave it out", param="separator"
            )

    def _check_labels(self) -> None:
        labels = self.template.labels
        if len(labels) == 1:
            raise TemplateRejected("there is one label: give two or more", param="labels")
        for label in labels:
            if label != label.strip():
                raise TemplateRejected(
                    f"the label {label!r} has spaces around it: remove them", param="labels"
                )
        for one, other in itertools.permutations(labels, 2):
            if other.startswith(one):
                raise TemplateRejected(
                    f"the label {one!r} is the beginning of {other!r}, so that their probabilities "
                    "cannot be compared: rename one",
                    param="labels",
                )

    def _check_plain(self, text: str, where: str, param: str | None = None) -> None:
        if special := self._special_token_in(text):
            raise TemplateRejected(
                f"{where} holds {special!r}, which the model takes for a special token: remove it; "
                "use_chat_template writes the model's own",
                param=param or where,
            )

    def _special_token_in(self, text: str) -> str | None:
        return next((token for token in self._special_tokens if token in text), None)


def text_of_inputs(example: Mapping[str, Any]) -> str:
    """What examples and inputs are compared by."""
    texts = []
    for name, value in example.items():
        if name != OUTPUT:
            texts.extend(value if isinstance(value, list) else [value])
    return "\n".join(texts)


def _difference(given: Mapping[str, Any], wanted: Sequence[str]) -> str | None:
    """What is missing or surplus, None if nothing is."""
    if missing := [name for name in wanted if name not in given]:
        return f"lacks {', '.join(missing)}: give each of {', '.join(wanted)}"
    if surplus := [name for name in given if name not in wanted]:
        return f"has {surplus[0][:64]!r}, which is no variable: give {', '.join(wanted)} only"
    return None
