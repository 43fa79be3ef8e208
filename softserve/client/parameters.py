"""The fields of the requests, as keyword arguments.

They are those of the wire format (softserve/schema), which has their descriptions and ranges; the
server checks them. A test holds the two together.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from softserve.schema.keys import Role
from softserve.schema.templates import Selection

# With `role` and `content`.
Message = Mapping[str, str]


class AdapterParameters(TypedDict, total=False):
    """Either, both or none; None takes a template's own away."""

    adapter: str | None
    soft_prompt: str | None


class FilterParameters(TypedDict, total=False):
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None


class SamplingParameters(FilterParameters, total=False):
    max_new_tokens: int | None
    min_new_tokens: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    n: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    ignore_eos: bool | None
    json_schema: Mapping[str, Any] | None
    regex: str | None
    choice: Sequence[str] | None


class ChatParameters(TypedDict, total=False):
    use_chat_template: bool
    system: str | None
    decoder_prompt: str | None


class AnswerParameters(TypedDict, total=False):
    logprobs: int | None
    return_token_ids: bool
    timeout_seconds: float | None
    priority: int


class GenerateParameters(
    ChatParameters, AdapterParameters, SamplingParameters, AnswerParameters, total=False
):
    """Of `generate` and `stream`, beside the prompt."""

    messages: Sequence[Message] | Sequence[Sequence[Message]] | None
    prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None


class InspectParameters(ChatParameters, AdapterParameters, FilterParameters, total=False):
    """Of `inspect`, beside the prompt."""

    messages: Sequence[Message] | None
    prompt_token_ids: Sequence[int] | None
    num_tokens: int


class RenderParameters(AdapterParameters, SamplingParameters, total=False):
    """Of `render`, beside the template and the inputs."""

    shots: int | str
    selection: Selection | None
    selection_seed: int | None
    examples: Sequence[Mapping[str, Any]] | None


class IclParameters(RenderParameters, AnswerParameters, total=False):
    """Of `icl` and `stream_icl`, beside the template and the inputs."""


class KeyParameters(TypedDict, total=False):
    """Of a new key, beside its name."""

    roles: Sequence[Role]
    adapters: Sequence[str] | None
    templates: Sequence[str] | None
    max_requests_in_flight: int | None
    prompt_tokens_per_minute: int | None
    completion_tokens_per_minute: int | None
    weight: float
    max_priority: int
    expires_in_days: float | None
