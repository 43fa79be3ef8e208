"""The wire format of the adapters' administration."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.adapters.registry import AdapterStatus, VersionStatus
from app.controls import Body, NonEmptyText
from app.engine.protocol import AdapterKind

DIGEST = "9f86d081884c7d65" * 4


class AdapterSource(Body):
    """Where the server itself finds an adapter."""

    source: Annotated[NonEmptyText, Field(max_length=4096)] = Field(
        description="A folder below --adapter-dir or an --adapter-root, or a hub id.",
        examples=["/srv/adapters/my-task", "my-team/my-task-lora"],
    )
    revision: Annotated[NonEmptyText, Field(max_length=256)] | None = Field(
        None, description="Of a hub id: a branch, a tag or a commit.", examples=["main"]
    )
    force: bool = Field(
        False,
        description="Take an adapter that declares another base model.",
        examples=[False],
    )


class RollbackBody(Body):
    """The version to go back to."""

    version: Annotated[NonEmptyText, Field(max_length=64)] | None = Field(
        None,
        description="A digest, or at least six of its first digits; without it, the version before "
        "the live one.",
        examples=[DIGEST[:12]],
    )


class VersionOut(BaseModel):
    """One version of an adapter."""

    version: str = Field(description="The digest of its files.", examples=[DIGEST])
    live: bool = Field(description="Whether the bare name means this one.", examples=[True])
    loaded: bool = Field(description="Whether the engine holds it in memory.", examples=[True])
    created_at: datetime = Field(
        description="When it was added.", examples=["2026-11-24T09:30:00Z"]
    )
    source: str = Field(
        description="`upload`, `adapter_dir`, or the source that was named.", examples=["upload"]
    )
    size_bytes: int = Field(description="Bytes in its files.", examples=[1_846_240])
    base_model: str | None = Field(
        description="The base model that it declares.",
        examples=["HuggingFaceTB/SmolLM2-135M-Instruct"],
    )
    rank: int | None = Field(description="Of a LoRA: its largest rank.", examples=[8])
    target_modules: list[str] = Field(
        description="Of a LoRA: the modules that it changes.", examples=[["q_proj", "v_proj"]]
    )
    virtual_tokens: int | None = Field(description="Of a soft prompt: how many.", examples=[None])
    requests: int = Field(
        description="Requests that it served since the server started.", examples=[17]
    )

    @classmethod
    def of(cls, status: VersionStatus, live: str | None) -> "VersionOut":
        version = status.version
        return cls(
            version=version.digest,
            live=version.digest == live,
            loaded=status.loaded,
            created_at=status.created_at,
            source=status.source,
            size_bytes=version.size_bytes,
            base_model=version.base_model,
            rank=version.rank,
            target_modules=list(version.target_modules),
            virtual_tokens=version.num_virtual_tokens,
            requests=status.requests,
        )


class AdapterOut(BaseModel):
    """An adapter: a name, and the versions that it has and had."""

    name: str = Field(description="Its name.", examples=["my-task"])
    kind: AdapterKind | None = Field(
        description="`lora` is named in `adapter`, `soft_prompt` in `soft_prompt`; null where "
        "nothing valid was ever there.",
        examples=["lora"],
    )
    live: str | None = Field(
        description="The version that the bare name means; null: it is not served.",
        examples=[DIGEST],
    )
    rejected: str | None = Field(
        description="Why what lies in the watched folder is not served, if it is not.",
        examples=[None],
    )
    requests: int = Field(
        description="Requests that it served since the server started.", examples=[17]
    )
    versions: list[VersionOut] = Field(description="Newest first.", examples=[[]])

    @classmethod
    def of(cls, status: AdapterStatus) -> "AdapterOut":
        return cls(
            name=status.name,
            kind=status.kind,
            live=status.live,
            rejected=status.rejected,
            requests=status.requests,
            versions=[VersionOut.of(version, status.live) for version in status.versions],
        )


class AdapterList(BaseModel):
    """Every adapter, by name."""

    adapters: list[AdapterOut] = Field(description="By name.", examples=[[]])
