"""From the wire to the domain: what a body asks for."""

from codecs import BOM_UTF8
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.engine.generation import GenerationRequest, PromptStyle, resolve_sampling
from app.errors import InvalidRequest
from app.http.media_types import JSON, media_type
from app.serving.few_shot import FewShotRequest
from softserve.schema.controls import AdapterChoice, PromptControls, Scheduling
from softserve.schema.generation import GenerateBody
from softserve.schema.icl import IclGenerateBody, RenderBody
from softserve.schema.inspection import InspectBody

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


def generation_request(body: GenerateBody, request: Request) -> GenerationRequest:
    """Raises `InvalidRequest`."""
    return GenerationRequest(
        request_id=request.state.request_id,
        session=request.headers.get(SESSION_HEADER),
        num_prompts=len(body.prompt),
        sampling=resolve_sampling(**body.sampling_given()),
        logprobs=body.logprobs,
        adapter=body.adapter,
        soft_prompt=body.soft_prompt,
        timeout_seconds=body.timeout_seconds,
        priority=body.priority,
    )


def inspection_request(body: InspectBody, request: Request) -> GenerationRequest:
    """The request for the one token that is inspected. Raises `InvalidRequest`."""
    return GenerationRequest(
        request_id=request.state.request_id,
        session=request.headers.get(SESSION_HEADER),
        num_prompts=1,
        sampling=resolve_sampling(**body.sampling_given(), max_new_tokens=1),
        adapter=body.adapter,
        soft_prompt=body.soft_prompt,
    )


def prompt_style(body: PromptControls) -> PromptStyle:
    """Raises `InvalidRequest`."""
    return PromptStyle(body.use_chat_template, body.system)


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
