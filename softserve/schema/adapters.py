"""The adapters' administration: `/adapters`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from softserve.schema.fields import MAX_TASK_DIGITS, Body, NonEmptyText
from softserve.schema.versions import NameFields, VersionFields

AdapterKind = Literal["lora", "soft_prompt"]

# The two files that PEFT saves of an adapter, and that an upload has.
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)

Task = Annotated[int, Field(ge=0, lt=10**MAX_TASK_DIGITS)]
TASK_AT_UPLOAD = "Of a multitask soft prompt: take this task alone, which needs no `#task` then."


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
    task: Task | None = Field(None, description=TASK_AT_UPLOAD, examples=[None])


class EffectOut(BaseModel):
    """What a version changed when it became live, on a short prompt that is always the same."""

    kl_divergence: float = Field(
        description="How far the distribution of the next token moved: KL(base || adapted), in "
        "nats. 0 is not at all.",
        examples=[0.173],
    )
    changed: bool = Field(
        description="Whether anything changed at all, beyond what differs between two askings of "
        "the base model.",
        examples=[True],
    )


class VersionFacts(BaseModel):
    """What was learned of a version from its files."""

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
    tasks: int | None = Field(
        None,
        description="Of a multitask soft prompt: how many a request can choose from, as `name#0`, "
        "`name#1`, ...",
        examples=[None],
    )
    task: int | None = Field(
        None,
        description="Of a multitask soft prompt: the one that was named when it was added.",
        examples=[None],
    )
    notes: list[str] = Field(
        [],
        description="In what it is served otherwise than its files say, which is as PEFT would "
        "load them.",
        examples=[[]],
    )


class VersionOut(VersionFacts, VersionFields):
    """One version of an adapter."""

    loaded: bool = Field(description="Whether the engine holds it in memory.", examples=[True])
    effect: EffectOut | None = Field(
        None,
        description="What it changed when it became live; null where that was not measured: by an "
        "older server, or because the engine was too busy.",
        examples=[{"kl_divergence": 0.173, "changed": True}],
    )
    warning: str | None = Field(
        None,
        description="What to look into before it is used, as that it has no effect; null where "
        "there is nothing.",
        examples=[None],
    )
    requests: int = Field(
        description="Requests that it served since the server started.", examples=[17]
    )


class AdapterOut(NameFields):
    """An adapter: a name, and the versions that it has and had."""

    kind: AdapterKind | None = Field(
        description="`lora` is named in `adapter`, `soft_prompt` in `soft_prompt`; null where "
        "nothing valid was ever there.",
        examples=["lora"],
    )
    requests: int = Field(
        description="Requests that it served since the server started.", examples=[17]
    )
    versions: list[VersionOut] = Field(description="Newest first.", examples=[[]])


class OriginOut(BaseModel):
    """How far this replica follows the origin that all replicas share."""

    replica: str = Field(
        description="This replica: when it started, and a random part.",
        examples=["1764230400000-1f0c9d2a"],
    )
    generation: int = Field(
        description="The generation of the origin's catalog that it follows.", examples=[17]
    )
    reachable: bool = Field(
        description="Whether the origin answered when it was asked last.", examples=[True]
    )
    publishes: bool = Field(
        description="Whether the watched folders of this replica are those of all.",
        examples=[True],
    )
    behind: dict[str, str] = Field(
        description="The adapters that it does not serve as the origin has them, with the reason; "
        "an empty one where they are on their way.",
        examples=[{}],
    )


class AdapterList(BaseModel):
    """Every adapter, by name."""

    adapters: list[AdapterOut] = Field(description="By name.", examples=[[]])
    origin: OriginOut | None = Field(
        None, description="With an origin: how far this replica follows it.", examples=[None]
    )
