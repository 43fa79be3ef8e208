"""The fields of a pydantic model as the options of a command: each is declared once, in the model.

    @with_options(Settings.model_fields)
    def serve(**given: Any) -> None: ...

`given` holds, by name, what was given; the model has the default of what was not.
"""

import json
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import Field, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

Command = Callable[..., None]

# What typer reads as it is, and lists of it as an option that may be repeated.
PLAIN = (bool, int, float, str, Path, SecretStr)


def with_options(fields: Mapping[str, FieldInfo]) -> Callable[[Command], Command]:
    """Add these fields to a command's own options; one without a default is an argument."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**values: Any) -> None:
            # Typer hands over None, or an empty list, for an option that was not given.
            command(**{name: each for name, each in values.items() if each not in (None, [])})

        own = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for parameter in signature(command).parameters.values()
            if parameter.kind is not Parameter.VAR_KEYWORD
        ]
        parameters = [_parameter(name, field) for name, field in fields.items()]
        run.__signature__ = Signature([*parameters, *own])  # type: ignore[attr-defined]
        return run

    return decorate


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def value_of(field: FieldInfo, text: str) -> Any:
    """The value of a field that is written in one word: as JSON, else the text itself.

    Raises:
        ValueError: it cannot be; the message says why.
    """
    kind: Any = Annotated[field.annotation, Field(), *field.metadata]
    adapter = TypeAdapter[Any](kind)
    reasons = []
    for value in (*_as_json(text), text):
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            reasons.append(error.errors()[0]["msg"].replace("Input should be", "must be"))
        else:
            return value
    raise ValueError(reasons[0])


def _as_json(text: str) -> list[Any]:
    """The value in it, if it is JSON."""
    try:
        return [json.loads(text)]
    except ValueError:
        return []


def _parameter(name: str, field: FieldInfo) -> Parameter:
    kind = _plain_type(field.annotation)
    extra: dict[str, Any] = {} if kind is not Any else {"parser": _json, "metavar": "JSON|@FILE"}
    if field.is_required():
        argument = typer.Argument(help=field.description, **extra)
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[kind, argument])
    default = field.get_default(call_default_factory=True)
    # What is neither on nor off unless it is said can be said both ways.
    names = f"{flag(name)}/{flag('no_' + name)}" if (kind, default) == (bool, None) else flag(name)
    option = typer.Option(
        names, help=field.description, show_default=str(default) if default else False, **extra
    )
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _plain_type(annotation: Any) -> Any:
    """What typer can parse: `int` for `PositiveInt | None`, `list[str]` for `tuple[str, ...]`.

    `Any` stands for what is too large for a word: it is given as JSON.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kinds = [argument for argument in arguments if argument is not NoneType]
        return _plain_type(kinds[0]) if len(kinds) == 1 else Any
    if origin is Annotated:
        return _plain_type(arguments[0])
    if origin in (list, tuple) and _plain_type(arguments[0]) in PLAIN:
        return list[_plain_type(arguments[0])]  # type: ignore[misc]
    return annotation if annotation in PLAIN or origin is Literal else Any


def _json(text: str) -> Any:
    """JSON, or that of a file."""
    try:
        return json.loads(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except OSError as error:
        raise typer.BadParameter(f"{text[1:]} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise typer.BadParameter(f"it is not JSON ({error})") from None
