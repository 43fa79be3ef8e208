"""Settings, read once at start: a flag of `softserve serve`, else `SOFTSERVE_<NAME>`, else default.

The description of a field is its sentence in `softserve serve --help` and in docs/settings.md.
"""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_cache_path
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from softserve.schema.server import Limits

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def _split(value: Any) -> Any:
    """In the environment, several values are one string, quoted as in a shell."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


class Settings(Limits, BaseSettings):
    """Every setting of the server."""

    model_config = SettingsConfigDict(env_prefix="SOFTSERVE_", frozen=True, extra="forbid")

    model: str | None = Field(
        None,
        description="A Hugging Face folder or hub id; without it, SmolLM2-135M-Instruct.",
    )
    served_model_name: str | None = Field(
        None, description="The model's name in answers; without it, the last part of --model."
    )
    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(
        8000, ge=0, le=65535, description="The port to listen on; 0 takes a free one and logs it."
    )
    precision: Precision = Field(
        "auto",
        description="The type of the weights; auto is bf16 where the device has instructions for "
        "it, else fp32.",
    )
    context_window: PositiveInt | None = Field(
        None, description="Tokens in prompt and completion; without it, the model's own maximum."
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="KV cache in GiB; without it, 2 on a CPU and what vLLM finds free on CUDA.",
    )
    engine_arg: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Any further vLLM engine argument as NAME=VALUE; may be repeated."
    )
    max_loras: NonNegativeInt = Field(
        8, description="Different LoRAs that share a batch; 0 turns LoRAs off."
    )
    max_loaded_adapters: PositiveInt = Field(
        64,
        description="LoRAs that the engine holds in memory; others load when they are asked for.",
    )
    adapter_dir: Path = Field(
        Path("adapters"),
        description="A folder of adapters that is watched: each is live by its name.",
    )
    adapter_root: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="A folder that adapters may be added from by path; may be repeated."
    )
    adapter_store: Path | None = Field(
        None,
        description="The private store of versions; without it, one per model in the user's data "
        "directory.",
    )
    adapter_retention: int = Field(
        5,
        ge=1,
        description="Versions of an adapter, or of a template, that are kept for a rollback.",
    )
    template_dir: Path = Field(
        Path("templates"),
        description="A folder of prompt templates that is watched: each is live by its name.",
    )
    admin_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="The key for changing adapters and templates; without it, only this machine "
        "may.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("softserve"),
        description="Where the default model is kept.",
    )
    keep_alive_timeout_seconds: PositiveInt = Field(
        75,
        description="How long a connection may be idle before it is closed; more than a proxy in "
        "front keeps its own.",
    )
    drain_timeout_seconds: float = Field(
        30.0, ge=0, description="How long running requests may finish after SIGTERM."
    )
    log_format: LogFormat = Field(
        "auto", description="auto is text on a terminal and JSON lines elsewhere."
    )
    log_level: LogLevel = Field("info", description="The least severe level that is logged.")
