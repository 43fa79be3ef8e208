"""Settings, read once at start: a flag of `softserve serve`, else `SOFTSERVE_<NAME>`, else default.

The description of a field is its sentence in `softserve serve --help` and in docs/settings.md.
"""

import ipaddress
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_cache_path
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from softserve.schema.server import Limits

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
LogFormat = Literal["auto", "text", "json"]
SlowReader = Literal["pause", "abort"]
LogLevel = Literal["debug", "info", "warning", "error"]


def _split(value: Any) -> Any:
    """In the environment, several values are one string, quoted as in a shell."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
ORIGIN = re.compile(r"https?://[^/?#@*\s]+")
# Of versions; no query and no credentials.
REGISTRY_URL = re.compile(r"(s3|gs|az)://[^/?#@\s][^?#@\s]*|file:///[^/?#]+(/[^?#]*)?")


def _origin(value: str) -> str:
    if ORIGIN.fullmatch(value) is None:
        raise PydanticCustomError(
            "origin", "an origin is written as https://HOST or https://HOST:PORT, without a path"
        )
    return value.lower()


def _registry_url(value: str) -> str:
    if REGISTRY_URL.fullmatch(value) is None:
        raise PydanticCustomError(
            "registry_url",
            "an origin is written as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
            "az://CONTAINER/PREFIX or file:///FOLDER",
        )
    return value.rstrip("/")


def _host_name(value: str) -> str:
    if HOST_NAME.fullmatch(value) is None:
        raise PydanticCustomError(
            "host_name", "a host name is written without a scheme, a port and a path"
        )
    return value.lower()


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
    encoder_window: PositiveInt | None = Field(
        None,
        description="Tokens in the prompt of an encoder-decoder model, its soft prompt's included; "
        "without it, 512, or as many as the model has positions. --context-window is its "
        "decoder's.",
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="KV cache in GiB; without it, 2 on a CPU and what vLLM finds free on CUDA.",
    )
    engine_arg: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Any further vLLM engine argument as NAME=VALUE; may be repeated."
    )
    tool_parser: str | None = Field(
        None,
        description="What reads calls of tools from the model's text under /v1: a tool parser of "
        "vLLM's, by name.",
    )
    max_loras: NonNegativeInt = Field(
        8, description="Different LoRAs that share a batch; 0 turns LoRAs off."
    )
    max_loaded_adapters: PositiveInt = Field(
        64,
        description="LoRAs that the engine holds in memory; others load when they are asked for.",
    )
    max_running_sequences: PositiveInt | None = Field(
        None,
        description="Completions that the engine works on at once, the others wait for their turn; "
        "without it, vLLM's max-num-seqs.",
    )
    max_unread_tokens: PositiveInt = Field(
        2048,
        description="Tokens of one request, its log probabilities included, that are made before "
        "its client has read them.",
    )
    slow_reader: SlowReader = Field(
        "pause",
        description="What happens to completions whose client has that many tokens to read: pause "
        "or abort.",
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
    origin: Annotated[str, AfterValidator(_registry_url)] | None = Field(
        None,
        description="Where all replicas have versions and pointers of adapters and templates from: "
        "s3://BUCKET/PREFIX, gs://, az:// or file:///FOLDER; without it, a server has its own.",
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
        description="A key for everything, beside those of --keys-file; better given in the "
        "environment, as a process's arguments can be seen by others.",
    )
    keys_file: Path | None = Field(
        None,
        description="The file of keys, made by `softserve key create`; with it, requests need a "
        "key.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Let whoever comes without a key generate, on any address; without it, and "
        "without --keys-file, only addresses of this machine are served.",
    )
    open_metrics: bool = Field(False, description="/metrics needs no key, with --keys-file too.")
    open_docs: bool = Field(
        False, description="/docs, /openapi.json and /info need no key, with --keys-file too."
    )
    playground: bool | None = Field(
        None,
        description="The playground at /, a page that shows what the controls, adapters and "
        "templates do; without it, only on loopback, and nowhere with --no-playground.",
    )
    cors_origin: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)
    ] = Field(
        (),
        description="A site, as https://HOST, whose pages may send requests; may be repeated.",
    )
    trusted_host: Annotated[
        tuple[Annotated[str, AfterValidator(_host_name)], ...], NoDecode, BeforeValidator(_split)
    ] = Field(
        (),
        description="A name by which clients reach the server, beside localhost and IP addresses; "
        "may be repeated. Others are then refused, as they are on loopback without keys.",
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
    engine_timeout_seconds: PositiveFloat = Field(
        30.0,
        description="How long the engine may leave a ping without an answer before new requests "
        "are refused, until it answers; more than its longest step takes.",
    )
    header_timeout_seconds: PositiveFloat = Field(
        20.0, description="How long the line and the headers of a request may take to come."
    )
    body_timeout_seconds: PositiveFloat = Field(
        30.0,
        description="How long a body may take for each 16 KiB, and for its end, to come.",
    )
    write_timeout_seconds: PositiveFloat = Field(
        120.0,
        description="How long a client may take nothing of its answer before it is dropped.",
    )
    max_connections: PositiveInt = Field(
        4096,
        description="Open connections; fewer where the hard limit on open files is low. Beyond, "
        "503.",
    )
    max_connections_per_address: PositiveInt | None = Field(
        None,
        description="Those from one address (IPv6: one /64); without it, half of "
        "--max-connections. Beyond, 429; this machine's own have no such bound.",
    )
    drain_timeout_seconds: float = Field(
        30.0, ge=0, description="How long running requests may finish after SIGTERM."
    )
    max_metric_names: PositiveInt = Field(
        100,
        description="Adapters, soft prompts, templates and keys, of each, that have metrics of "
        "their own; the others share `other`.",
    )
    log_format: LogFormat = Field(
        "auto", description="auto is text on a terminal and JSON lines elsewhere."
    )
    log_level: LogLevel = Field("info", description="The least severe level that is logged.")

    @property
    def has_playground(self) -> bool:
        """Whether the playground is served."""
        return _is_loopback(self.host) if self.playground is None else self.playground


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
