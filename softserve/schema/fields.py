"""What the fields of every body have in common: strict types, real text, plain ranges."""

import json
import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

ALLOWED_CONTROL_CHARACTERS = "\t\n\r"
MAX_INTEGER = 2**63 - 1
NOT_TEXT = {"Cc": "control character", "Cs": "lone surrogate"}
# Of an adapter or a template.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
# As many digits of a version as a person reads.
SHOWN_DIGITS = 12
MAX_TASK_DIGITS = 9
# A name, an @ and a digest, a # and a task.
MAX_REFERENCE_LENGTH = 64 + 1 + 64 + 1 + MAX_TASK_DIGITS
SHOWN_DIGEST = "9f86d081884c7d65" * 4


def refuse_what_is_not_text(text: str) -> str:
    """Control characters and lone surrogates are an error of the field."""
    for position, character in enumerate(text):
        kind = NOT_TEXT.get(unicodedata.category(character))
        if kind is not None and character not in ALLOWED_CONTROL_CHARACTERS:
            raise PydanticCustomError(
                "not_text",
                "the {kind} U+{code} at position {position} is not text: remove it",
                {"kind": kind, "code": f"{ord(character):04X}", "position": position},
            )
    return text


Text = Annotated[str, AfterValidator(refuse_what_is_not_text)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
NonEmptyText = Annotated[Text, Field(min_length=1)]
Reference = Annotated[Text, Field(min_length=1, max_length=MAX_REFERENCE_LENGTH)]


def one_or_more(kind: type, what: str) -> BeforeValidator:
    """Takes one of the kind for a list of one. Another value is told what it must be."""

    def listed(value: Any) -> Any:
        if isinstance(value, kind):
            return [value]
        if not isinstance(value, list):
            raise PydanticCustomError(
                "not_one_or_more", "must be {what} or a list of them", {"what": what}
            )
        return value

    return BeforeValidator(listed)


def one_list_or_more(value: Any) -> Any:
    is_one = isinstance(value, list) and bool(value) and not isinstance(value[0], list)
    return [value] if is_one else value


class OneOrMore:
    """In the schema of a list of items: or one item, which stands for a list of one."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        several = handler(core_schema)
        return {"anyOf": [several["items"], several]}


# Not a union: an error would be told once for each of its members.
StopStrings = Annotated[list[NonEmptyText], one_or_more(str, "a text"), OneOrMore()]


Choices = Annotated[list[NonEmptyText], Field(min_length=1)]


def _stops_early(value: Any) -> Any:
    if isinstance(value, bool) or value == "never":
        return value
    raise PydanticCustomError("not_early_stopping", 'must be true, false or "never"')


# Here too an error would be told once for each of them.
EarlyStopping = Annotated[bool | Literal["never"], BeforeValidator(_stops_early)]


def _is_json(value: dict[str, Any]) -> dict[str, Any]:
    """Python's parser takes what is no JSON, and more levels than others do."""
    try:
        refuse_what_is_not_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError(
            "not_json", "must be JSON without NaN and Infinity, not nested too deeply"
        ) from error
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_is_json)]


# What describes a field beside its type.
ANNOTATIONS = ("title", "description", "default", "examples")


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    described = {name: schema[name] for name in ANNOTATIONS if name in schema}
    kind = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
    alternatives = kind["anyOf"] if list(kind) == ["anyOf"] else [kind]
    return {"anyOf": [*alternatives, {"type": "null"}], **described}


class Body(BaseModel):
    """A request body: strict types, no unknown fields, finite numbers; null means the default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_means_the_default(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {
            name: value
            for name, value in body.items()
            if value is not None or not cls._has_default_but_null(name)
        }

    @classmethod
    def _has_default_but_null(cls, name: Any) -> bool:
        field = cls.model_fields.get(name)
        return field is not None and not field.is_required() and field.default is not None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name in filter(cls._has_default_but_null, properties):
            properties[name] = _or_null(properties[name])
        return schema


def name_refusal(what: str, name: str) -> str | None:
    """Why this cannot be the name of `what`, None where it can."""
    if NAME.fullmatch(name) is not None:
        return None
    return (
        f"{what}'s name has at most 64 letters, digits, '.', '_' and '-', and begins with a "
        "letter or a digit: choose another"
    )
