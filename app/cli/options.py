"""The fields of a pydantic model as the options of a command: each is declared once, in the model.

    @with_options(Settings.model_fields)
    def serve(**given: Any) -> None: ...

`given` holds, by name, what was given; the model has the default of what was not.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

Command = Callable[..., None]


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


def _parameter(name: str, field: FieldInfo) -> Parameter:
    kind = _plain_type(field.annotation)
    if field.is_required():
        argument = typer.Argument(help=field.description)
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[kind, argument])
    default = field.get_default(call_default_factory=True)
    # What is neither on nor off unless it is said can be said both ways.
    names = f"{flag(name)}/{flag('no_' + name)}" if (kind, default) == (bool, None) else flag(name)
    option = typer.Option(
        names, help=field.description, show_default=str(default) if default else False
    )
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _plain_type(annotation: Any) -> Any:
    """`int` for `PositiveInt | None`, `list[str]` for `tuple[str, ...]`: what typer can parse."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        (annotation,) = (argument for argument in arguments if argument is not NoneType)
        return _plain_type(annotation)
    if origin is Annotated:
        return _plain_type(arguments[0])
    return list[str] if origin is tuple else annotation
