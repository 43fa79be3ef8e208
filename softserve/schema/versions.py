"""What adapters and templates have in common: names that point to versions."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from softserve.schema.fields import MAX_INTEGER, SHOWN_DIGEST, SHOWN_DIGITS, Body, NonEmptyText

Sticky = Literal["none", "key", "session"]
# For whom the answer to a change waits, beside the server that made it.
Wait = Literal["all"]
# A digest, or at least six of its first digits.
VersionReference = Annotated[NonEmptyText, Field(max_length=64)]
Weight = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Percent = Annotated[float, Field(gt=0, le=100)]

OTHER_SHOWN_DIGEST = "60303ae22b998861" * 4


class RollbackBody(Body):
    """The version to go back to."""

    version: VersionReference | None = Field(
        None,
        description="A digest, or at least six of its first digits; without it, the version before "
        "the live one, and of a split the live one.",
        examples=[SHOWN_DIGEST[:SHOWN_DIGITS]],
    )


class PromoteBody(Body):
    """The version to make live."""

    version: VersionReference | None = Field(
        None,
        description="A digest, or at least six of its first digits; without it, the one version "
        "beside the live one in the split, or else the shadow.",
        examples=[SHOWN_DIGEST[:SHOWN_DIGITS]],
    )


class SplitFields(BaseModel):
    """How the requests for a name are shared among its versions."""

    sticky: Sticky = Field(
        "none",
        description="`key`: requests of one API key get one version; `session`: those with one "
        "value of the header x-softserve-session; `none`: each is dealt at random, as are those "
        "without a key or the header.",
        examples=["session"],
    )


class SplitBody(Body, SplitFields):
    """The versions that a bare name means, and how often."""

    versions: dict[str, Weight] = Field(
        description="The weight of each version: of the live one and of others that the name has. "
        "A version is a digest, or at least six of its first digits.",
        examples=[{SHOWN_DIGEST[:SHOWN_DIGITS]: 90, OTHER_SHOWN_DIGEST[:SHOWN_DIGITS]: 10}],
    )


class SplitOut(SplitFields):
    """How the requests for a name are shared among its versions."""

    versions: dict[str, int] = Field(
        description="The weight of each version.",
        examples=[{SHOWN_DIGEST: 90, OTHER_SHOWN_DIGEST: 10}],
    )


class ShadowBody(Body):
    """The version that gets copies of requests."""

    version: VersionReference = Field(
        description="A digest, or at least six of its first digits.",
        examples=[OTHER_SHOWN_DIGEST[:SHOWN_DIGITS]],
    )
    percent: Percent = Field(
        description="Of the requests that the live version answers.",
        examples=[10],
    )


class ShadowResults(BaseModel):
    """What came of the copies since the shadow began, or since the server started."""

    completed: int = Field(description="Copies that ran to their end.", examples=[120])
    failed: int = Field(description="Copies that failed.", examples=[0])
    skipped: int = Field(
        description="Copies that were not made, because the server was busy.", examples=[4]
    )
    live_seconds: float = Field(
        description="What the live answers of the completed copies took in the engine, in all.",
        examples=[71.5],
    )
    shadow_seconds: float = Field(
        description="What the completed copies took in the engine, in all.", examples=[73.1]
    )
    live_tokens: int = Field(
        description="Completion tokens of the live answers of the completed copies.",
        examples=[3612],
    )
    shadow_tokens: int = Field(
        description="Completion tokens of the completed copies.", examples=[3498]
    )
    compared: int = Field(
        description="Greedy completions, which can be compared: random ones differ anyway.",
        examples=[120],
    )
    equal: int = Field(description="Of these, those with the same text.", examples=[96])
    agreement: float | None = Field(
        description="How far the compared completions agree, on average: the tokens before the "
        "first that differs, of those of the longer one. null: none was compared.",
        examples=[0.91],
    )


class ShadowOut(BaseModel):
    """A version that gets copies of requests, whose answers are compared and thrown away."""

    version: str = Field(description="The digest of the version.", examples=[OTHER_SHOWN_DIGEST])
    percent: float = Field(
        description="Of the requests that the live version answers.",
        examples=[10],
    )
    since: datetime = Field(description="When it began.", examples=["2026-11-24T09:30:00Z"])
    results: ShadowResults = Field(description="What came of them.")


class VersionFields(BaseModel):
    """One version of a name."""

    version: str = Field(description="The digest of its content.", examples=[SHOWN_DIGEST])
    live: bool = Field(
        description="Whether the bare name means this one; of a split, the one that a rollback "
        "leaves.",
        examples=[True],
    )
    created_at: datetime = Field(
        description="When it was added.", examples=["2026-11-24T09:30:00Z"]
    )
    source: str = Field(
        description="`upload`, `adapter_dir`, `template_dir`, or the source that was named.",
        examples=["upload"],
    )


class ReplicaOut(BaseModel):
    """A replica that is alive, and whether it serves what was asked for."""

    id: str = Field(
        description="The replica: when it started, and a random part.",
        examples=["1764230400000-1f0c9d2a"],
    )
    host: str = Field(description="The name of its machine.", examples=["softserve-0"])
    serves: bool = Field(description="Whether it serves the change.", examples=[True])
    why: str | None = Field(
        None,
        description="Why it does not; null where it does, or was still about to when the wait "
        "was over.",
        examples=[None],
    )


class NameFields(BaseModel):
    """A name, and what it points to."""

    name: str = Field(description="Its name.", examples=["my-task"])
    live: str | None = Field(
        description="The version that the bare name means; null: it is not served. During a "
        "split, the one that a rollback leaves.",
        examples=[SHOWN_DIGEST],
    )
    split: SplitOut | None = Field(
        None, description="The versions that share the bare name, if several do.", examples=[None]
    )
    shadow: ShadowOut | None = Field(
        None, description="The version that gets copies of requests, if one does.", examples=[None]
    )
    rejected: str | None = Field(
        description="Why what lies in the watched folder, or in the store, is not served, if it "
        "is not.",
        examples=[None],
    )
    replicas: list[ReplicaOut] | None = Field(
        None,
        description="With `wait=all`: every replica that is alive.",
        examples=[None],
    )


def short(digest: str) -> str:
    """As many digits of a version as a person reads."""
    return digest[:SHOWN_DIGITS]
