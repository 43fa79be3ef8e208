"""Keys, and what has been used with each: `/keys` and `/usage`."""

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from softserve.schema.fields import Body, PositiveCount, name_refusal

Role = Literal["user", "operator", "admin"]
ROLES: tuple[Role, ...] = ("user", "operator", "admin")

SECRET_PREFIX = "sk-softserve-"  # noqa: S105  (what every secret begins with)
SECRET = re.compile(rf"{SECRET_PREFIX}[A-Za-z0-9_-]+")
# The names of who comes with --admin-key, and without a key.
ADMIN, ANONYMOUS = "admin", "anonymous"


def _checked_name(name: str) -> str:
    if refusal := name_refusal("a key", name):
        raise PydanticCustomError("name", "{refusal}", {"refusal": refusal})
    if name in (ADMIN, ANONYMOUS):
        raise PydanticCustomError(
            "name", "{name} is the server's own name for a caller: choose another", {"name": name}
        )
    return name


KeyName = Annotated[str, AfterValidator(_checked_name)]
Pattern = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._*?\[\]!-]{1,64}$")]


def without_secrets(text: str) -> str:
    """The text, for a log or an answer; a secret may stand in it where nobody expects one."""
    return SECRET.sub(f"{SECRET_PREFIX}…", text)


class KeyFields(BaseModel):
    """What a key is called, and what it allows."""

    name: KeyName = Field(description="Its name.", examples=["support-bot"])
    roles: Annotated[list[Role], Field(min_length=1)] = Field(
        ["user"],
        description="`user` generates, `operator` reads metrics and usage and drains, `admin` "
        "changes adapters, templates and keys.",
        examples=[["user"]],
    )
    adapters: list[Pattern] | None = Field(
        None,
        description="The adapters and soft prompts that it may use: names, or patterns with `*` "
        "and `?`; without, all.",
        examples=[["support-*"]],
    )
    templates: list[Pattern] | None = Field(
        None,
        description="The templates that it may use: names, or patterns; without, all.",
        examples=[["sentiment"]],
    )
    max_requests_in_flight: PositiveCount | None = Field(
        None, description="Its requests at once; without, no limit.", examples=[8]
    )
    prompt_tokens_per_minute: PositiveCount | None = Field(
        None, description="Its prompt tokens in a minute; without, no limit.", examples=[100_000]
    )
    completion_tokens_per_minute: PositiveCount | None = Field(
        None, description="Its generated tokens in a minute; without, no limit.", examples=[20_000]
    )
    weight: Annotated[float, Field(ge=0.01, le=100)] = Field(
        1.0,
        description="Its part of a busy server, against the weights of others who wait.",
        examples=[2.0],
    )
    max_priority: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="The highest `priority` of its requests.", examples=[0]
    )


class CreateKey(KeyFields, Body):
    """A key to be made."""

    expires_in_days: Annotated[float, Field(gt=0, le=36_500)] | None = Field(
        None, description="When it ends by itself; without, never.", examples=[90.0]
    )


class KeyOut(KeyFields):
    """A key, without its secret: that is not kept."""

    created_at: datetime = Field(description="When it was made.", examples=["2026-11-24T09:30:00Z"])
    expires_at: datetime | None = Field(
        None, description="When it ends by itself; without, never.", examples=[None]
    )


class KeyCreated(KeyOut):
    """A new key."""

    secret: str = Field(
        description="What its owner sends as `authorization: Bearer SECRET`. It is shown once.",
        examples=[f"{SECRET_PREFIX}…"],
    )


class KeyList(BaseModel):
    """Every key."""

    keys: list[KeyOut] = Field(description="The keys, in the order of their names.", examples=[[]])


class Tally(BaseModel):
    """What has been used."""

    requests: int = Field(0, description="Requests that were admitted.", examples=[120])
    prompt_tokens: int = Field(
        0, description="Prompt tokens, those from the prefix cache included.", examples=[5_400]
    )
    cached_tokens: int = Field(
        0, description="Prompt tokens that came from the prefix cache.", examples=[2_560]
    )
    completion_tokens: int = Field(0, description="Generated tokens.", examples=[9_800])


class UsageRow(Tally):
    """What has been used with one key of one adapter and one soft prompt."""

    key: str = Field(
        description=f"The key's name; `{ADMIN}` is --admin-key, `{ANONYMOUS}` is no key.",
        examples=["support-bot"],
    )
    adapter: str | None = Field(
        None, description="The LoRA adapter, null without one.", examples=["support-intent-lora"]
    )
    soft_prompt: str | None = Field(
        None, description="The soft prompt, null without one.", examples=[None]
    )


class UsageReport(BaseModel):
    """What has been used since the counters began; they survive a restart."""

    since: datetime = Field(
        description="When the counters began.", examples=["2026-11-24T09:30:00Z"]
    )
    usage: list[UsageRow] = Field(
        description="Of every key for an operator or admin, else of the caller's own.",
        examples=[[]],
    )
