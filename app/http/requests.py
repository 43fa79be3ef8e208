"""From the wire to the domain: what a body asks for."""

from codecs import BOM_UTF8
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.engine.generation import Chat, GenerationRequest, PromptSource, resolve_sampling
from app.errors import InvalidRequest
from app.http.media_types import JSON, media_type
from app.serving.few_shot import FewShotRequest
from softserve.schema.controls import AdapterChoice, PromptControls, Scheduling
from softserve.schema.generation import GenerateBody
from softserve.schema.icl import IclGenerateBody, RenderBody
from softserve.schema.inspection import InspectBody
from softserve.schema.prompts import PROMPT_FIELDS, Message

SESSION_HEADER = "x-softserve-session"

T = TypeVar("T", bound=BaseModel)


async def json_body(kind: type[T], request: Request, otherwise: str) -> T:
    """The body of an endpoint that takes more than JSON.

    Raises:
        RequestValidationError: it is wrong.
        InvalidRequest: it is no JSON, nor meant as such; `otherwise` says what to send.
    """
    # As FastAPI reads it elsewhere.
    body = (await request.body()).removeprefix(BOM_UTF8)
    is_meant = media_type(request.headers) == JSON or body.lstrip().startswith(b"{")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors()
        if errors[0]["type"] == "json_invalid" and not is_meant:
            raise InvalidRequest(otherwise) from error
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in errors]
        ) from error


def prompt_sources(body: GenerateBody | InspectBody) -> list[PromptSource]:
    """What the prompts of a body are made from. Raises `InvalidRequest`."""
    field = _prompt_field(body)
    given = getattr(body, field)
    several = given if isinstance(body, GenerateBody) else [given]
    match field:
        case "messages":
            return [_chat(messages) for messages in several]
        case "prompt" if body.use_chat_template:
            return [Chat.of(("system", body.system), ("user", text)) for text in several]
        case _:
            return list(several)


def _prompt_field(body: GenerateBody | InspectBody) -> str:
    """The one field that has the prompts. Raises `InvalidRequest`."""
    given = [name for name in PROMPT_FIELDS if getattr(body, name) is not None]
    if not given:
        raise InvalidRequest(
            f"the prompt is missing: give one of {', '.join(PROMPT_FIELDS)}", param="prompt"
        )
    field = given[0]
    if len(given) > 1:
        raise InvalidRequest(
            f"{field} and {given[1]} are two prompts: leave one of them out", param=given[1]
        )
    if field != "prompt":
        _refuse_chat_controls(body, field)
    elif body.system is not None and not body.use_chat_template:
        raise InvalidRequest(
            "system needs the model's chat template: set use_chat_template to true", param="system"
        )
    return field


def _refuse_chat_controls(body: PromptControls, field: str) -> None:
    advice = {
        "use_chat_template": "messages are in the chat template anyway, and tokens never are: "
        "leave it out",
        "system": "make it the first of messages, or leave it out",
    }
    for name, what_to_do in advice.items():
        if getattr(body, name):
            raise InvalidRequest(f"{name} has no effect on {field}: {what_to_do}", param=name)


def _chat(messages: Sequence[Message]) -> Chat:
    if messages[-1].role == "assistant":
        raise InvalidRequest(
            "the last message is the assistant's, and the answer would be a second one: end with "
            "the user's",
            param="messages",
        )
    return Chat(tuple(messages))


def generation_request(body: GenerateBody, request: Request, num_prompts: int) -> GenerationRequest:
    """Raises `InvalidRequest`."""
    return GenerationRequest(
        request_id=request.state.request_id,
        session=request.headers.get(SESSION_HEADER),
        num_prompts=num_prompts,
        prompt_field=_prompt_field(body),
        sampling=resolve_sampling(**body.sampling_given()),
        logprobs=body.logprobs,
        adapter=body.adapter,
        soft_prompt=body.soft_prompt,
        timeout_seconds=body.timeout_seconds,
        priority=body.priority,
        decoder_prompt=body.decoder_prompt,
    )


def inspection_request(body: InspectBody, request: Request) -> GenerationRequest:
    """The request for the one token that is inspected. Raises `InvalidRequest`."""
    return GenerationRequest(
        request_id=request.state.request_id,
        session=request.headers.get(SESSION_HEADER),
        num_prompts=1,
        prompt_field=_prompt_field(body),
        sampling=resolve_sampling(**body.sampling_given(), max_new_tokens=1),
        adapter=body.adapter,
        soft_prompt=body.soft_prompt,
        decoder_prompt=body.decoder_prompt,
    )


def few_shot_request(body: RenderBody, request: Request) -> FewShotRequest:
    """What a template is to be filled with."""
    return FewShotRequest(
        request_id=request.state.request_id,
        session=request.headers.get(SESSION_HEADER),
        template=body.template,
        inputs=tuple(body.inputs),
        shots=body.shots,
        selection=body.selection,
        selection_seed=body.selection_seed,
        examples=None if body.examples is None else tuple(body.examples),
        sampling=body.sampling_given(),
        adapters=body.model_dump(include=set(AdapterChoice.model_fields), exclude_unset=True),
        **_only_of_a_generation(body),
    )


def _only_of_a_generation(body: RenderBody) -> dict[str, Any]:
    if not isinstance(body, IclGenerateBody):
        return {}
    return body.model_dump(include={"logprobs", *Scheduling.model_fields})
