"""`/icl/templates`: show and change the prompt templates."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from app.http.administration import Administrator
from app.http.answers import template_out, template_summary
from app.http.dependencies import (
    ERRORS,
    NOT_FOUND,
    REFUSALS,
    TheService,
    TheTemplates,
    TheWarming,
    json_answer,
)
from app.http.media_types import YAML, media_type
from app.http.requests import json_body
from app.templates.source import parse_yaml, validate_template
from app.versions.records import FROM_UPLOAD
from softserve.schema.templates import Template, TemplateList, TemplateOut
from softserve.schema.versions import RollbackBody

HOW_TO_SEND = (
    "the body is not JSON, and was not sent as YAML: send YAML with the header content-type: "
    "application/yaml (curl -H 'content-type: application/yaml' --data-binary @PATH)"
)

router = APIRouter(prefix="/icl/templates")


@router.get("", summary="List the templates, with their versions")
async def list_templates(templates: TheTemplates) -> TemplateList:
    return TemplateList(
        templates=[template_summary(templates, record) for record in templates.names.list()]
    )


@router.get(
    "/{name}",
    summary="Show one template",
    response_model=TemplateOut,
    responses=NOT_FOUND | {422: ERRORS[422]},
)
async def show_template(name: str, templates: TheTemplates) -> Response:
    return json_answer(template_out(templates, templates.names.get(name)))


@router.put(
    "/{name}",
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
    name: str,
    request: Request,
    service: TheService,
    templates: TheTemplates,
    warming: TheWarming,
) -> Response:
    """It is checked, stored, and then live: the very next request uses it."""
    service.check_serving()
    template = await _parse_template(request)
    record = await templates.publish(name, template, FROM_UPLOAD)
    await warming.warm(name)
    return json_answer(template_out(templates, record))


@router.post(
    "/{name}/rollback",
    summary="Make an older version of a template live again",
    dependencies=[Administrator],
    response_model=TemplateOut,
    responses=REFUSALS | NOT_FOUND,
)
async def roll_back(
    name: str,
    service: TheService,
    templates: TheTemplates,
    warming: TheWarming,
    body: Annotated[RollbackBody | None, Body()] = None,
) -> Response:
    service.check_serving()
    version = None if body is None else body.version
    record = await templates.names.rollback(name, version)
    await warming.warm(name)
    return json_answer(template_out(templates, record))


@router.delete(
    "/{name}",
    summary="Remove a template with its versions",
    status_code=204,
    dependencies=[Administrator],
    responses=REFUSALS | NOT_FOUND,
)
async def remove_template(name: str, service: TheService, templates: TheTemplates) -> Response:
    service.check_serving()
    await templates.names.remove(name)
    return Response(status_code=204)


async def _parse_template(request: Request) -> Template:
    """The body, in JSON or in YAML."""
    if media_type(request.headers) in YAML:
        return validate_template(await asyncio.to_thread(parse_yaml, await request.body()))
    return await json_body(Template, request, otherwise=HOW_TO_SEND)
