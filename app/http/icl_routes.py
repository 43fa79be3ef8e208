"""The endpoints of in-context learning: prompts from templates, and the templates themselves."""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.http.adapter_routes import REFUSALS
from app.http.adapter_schemas import RollbackBody
from app.http.administration import Administrator
from app.http.icl_schemas import (
    IclGenerateAnswer,
    IclGenerateBody,
    PromptUsed,
    RenderAnswer,
    RenderBody,
    RenderedPrompt,
    TemplateList,
    TemplateOut,
    TemplateSummary,
    TemplateUsed,
)
from app.http.routes import ERRORS, EVENT_STREAM, RequestId, TheService, json_answer
from app.http.schemas import ErrorAnswer
from app.http.streaming import Answering, EventStream, collect, until_disconnect
from app.icl.registry import FROM_REQUEST, TemplateRegistry
from app.icl.source import parse_yaml, validate_template
from app.icl.template import Template
from app.in_context import InContext

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")
NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorAnswer, "description": "No such template or version."}
}

router = APIRouter(prefix="/icl")


async def _in_context(request: Request) -> InContext:
    in_context: InContext = request.app.state.in_context
    return in_context


TheInContext = Annotated[InContext, Depends(_in_context)]


async def _templates(in_context: TheInContext) -> TemplateRegistry:
    return in_context.templates


TheTemplates = Annotated[TemplateRegistry, Depends(_templates)]


@router.post(
    "/render",
    summary="Make prompts from a template, and generate nothing",
    response_model=RenderAnswer,
    responses=ERRORS | NOT_FOUND,
)
async def render(
    body: RenderBody, request: Request, in_context: TheInContext, request_id: RequestId
) -> Response:
    prepared = await in_context.prepare(body.to_request(request_id))
    await until_disconnect(request, in_context.render(prepared))
    prompts = [RenderedPrompt.of(prepared, prompt) for prompt in prepared.prompts]
    return json_answer(
        RenderAnswer(id=request_id, template=TemplateUsed.of(prepared), prompts=prompts)
    )


@router.post(
    "/generate",
    summary="Make prompts from a template, and complete them",
    response_model=IclGenerateAnswer,
    responses=ERRORS | NOT_FOUND | EVENT_STREAM,
)
async def generate(
    body: IclGenerateBody,
    request: Request,
    in_context: TheInContext,
    request_id: RequestId,
    service: TheService,
) -> Response:
    asked = replace(body.to_request(request_id), logprobs=body.logprobs)
    prepared = await in_context.prepare(asked)

    def of_prompt(index: int) -> dict[str, Any]:
        used = PromptUsed.of(prepared, prepared.prompts[index])
        return {
            "template": TemplateUsed.of(prepared),
            "prompt": used.model_dump(exclude_unset=True),
        }

    answering = Answering(prepared.request, service.engine, body.return_token_ids, of_prompt)
    chunks = in_context.generate(prepared)
    if body.stream:
        first = await until_disconnect(request, anext(chunks))
        return EventStream(answering, first, chunks)
    answer = await until_disconnect(request, collect(answering, chunks))
    return json_answer(
        IclGenerateAnswer(
            **{name: getattr(answer, name) for name in answer.model_fields_set},
            template=TemplateUsed.of(prepared),
            prompts=[PromptUsed.of(prepared, prompt) for prompt in prepared.prompts],
        )
    )


@router.get("/templates", summary="List the templates, with their versions")
async def list_templates(templates: TheTemplates) -> TemplateList:
    return TemplateList(templates=[TemplateSummary.of(record) for record in templates.list()])


@router.get(
    "/templates/{name}",
    summary="Show one template",
    response_model=TemplateOut,
    responses=NOT_FOUND | {422: ERRORS[422]},
)
async def show_template(name: str, templates: TheTemplates) -> Response:
    return json_answer(TemplateOut.of(templates.get(name)))


@router.put(
    "/templates/{name}",
    summary="Add a template, or a new version of one",
    dependencies=[Administrator],
    response_model=TemplateOut,
    responses=REFUSALS,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Template"}},
                "application/yaml": {"schema": {"type": "string"}},
            },
        }
    },
)
async def put_template(
    name: str, request: Request, service: TheService, in_context: TheInContext
) -> Response:
    """It is checked, stored, and then live: the very next request uses it."""
    service.check_serving()
    template = await _parse_template(request)
    record = await in_context.templates.publish(name, template, FROM_REQUEST)
    await in_context.warm(name)
    return json_answer(TemplateOut.of(record))


@router.post(
    "/templates/{name}/rollback",
    summary="Make an older version of a template live again",
    dependencies=[Administrator],
    response_model=TemplateOut,
    responses=REFUSALS | NOT_FOUND,
)
async def roll_back(
    name: str,
    service: TheService,
    in_context: TheInContext,
    body: Annotated[RollbackBody | None, Body()] = None,
) -> Response:
    service.check_serving()
    version = None if body is None else body.version
    record = await in_context.templates.rollback(name, version)
    await in_context.warm(name)
    return json_answer(TemplateOut.of(record))


@router.delete(
    "/templates/{name}",
    summary="Remove a template with its versions",
    status_code=204,
    dependencies=[Administrator],
    responses=REFUSALS | NOT_FOUND,
)
async def remove_template(name: str, service: TheService, templates: TheTemplates) -> Response:
    service.check_serving()
    await templates.remove(name)
    return Response(status_code=204)


async def _parse_template(request: Request) -> Template:
    """The body, in JSON or in YAML."""
    body = await request.body()
    if request.headers.get("content-type", "").partition(";")[0].strip() in YAML_TYPES:
        return validate_template(await asyncio.to_thread(parse_yaml, body))
    try:
        return Template.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        ) from error
