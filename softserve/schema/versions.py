"""What adapters and templates have in common: names that point to versions."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from softserve.schema.fields import SHOWN_DIGEST, SHOWN_DIGITS, Body, NonEmptyText


class RollbackBody(Body):
    """The version to go back to."""

    version: Annotated[NonEmptyText, Field(max_length=64)] | None = Field(
        None,
        description="A digest, or at least six of its first digits; without it, the version before "
        "the live one.",
        examples=[SHOWN_DIGEST[:SHOWN_DIGITS]],
    )


class VersionFields(BaseModel):
    """One version of a name."""

    version: str = Field(description="The digest of its content.", examples=[SHOWN_DIGEST])
    live: bool = Field(description="Whether the bare name means this one.", examples=[True])
    created_at: datetime = Field(
        description="When it was added.", examples=["2026-11-24T09:30:00Z"]
    )
    source: str = Field(
        description="`upload`, `adapter_dir`, `template_dir`, or the source that was named.",
        examples=["upload"],
    )


class NameFields(BaseModel):
    """A name, and what it points to."""

    name: str = Field(description="Its name.", examples=["my-task"])
    live: str | None = Field(
        description="The version that the bare name means; null: it is not served.",
        examples=[SHOWN_DIGEST],
    )
    rejected: str | None = Field(
        description="Why what lies in the watched folder, or in the store, is not served, if it "
        "is not.",
        examples=[None],
    )


def short(digest: str) -> str:
    """As many digits of a version as a person reads."""
    return digest[:SHOWN_DIGITS]
