"""`/icl/templates`: show and change the prompt templates."""

import asyncio

from fastapi import Request, Response

from app.http.answers import template_out, template_summary
from app.http.dependencies import (
    ERRORS,
    NOT_FOUND,
    REFUSALS,
    Live,
    TheCaller,
    TheService,
    TheTemplates,
    TheWaiting,
    TheWarming,
    json_answer,
)
from app.http.guard import router_for
from app.http.media_types import YAML, media_type
from app.http.requests import json_body
from app.http.routes.pointers import Pointers, add_routes
from app.templates.source import parse_yaml, validate_template
from app.versions.records import FROM_UPLOAD, Record
from softserve.schema.templates import Template, TemplateList, TemplateOut
from softserve.schema.versions import ReplicaOut

HOW_TO_SEND = (
    "the body is not JSON, and was not sent as YAML: send YAML with the header content-type: "
    "application/yaml (curl -H 'content-type: application/yaml' --data-binary @PATH)"
)

readers = router_for("user", "admin", prefix="/icl/templates")
admins = router_for("admin", prefix="/icl/templates")
routers = (readers, admins)


@readers.get(
    "", summary="List the templates, with their versions", response_model_exclude_unset=True
)
async def list_templates(caller: TheCaller, templates: TheTemplates) -> TemplateList:
    records = [each for each in templates.names.list() if caller.may_use_template(each.name)]
    return TemplateList(templates=[template_summary(templates, record) for record in records])


@readers.get(
    "/{name}",
    summary="Show one template",
    response_model=TemplateOut,
    responses=NOT_FOUND | {422: ERRORS[422]},
)
async def show_template(name: str, caller: TheCaller, templates: TheTemplates) -> Response:
    caller.require_template(name, "name")
    return json_answer(template_out(templates, templates.names.get(name, caller.may_use_template)))


@admins.put(
    "/{name}",
    summary="Add a template, or a new version of one",
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
    waiting: TheWaiting,
    live: Live = True,
) -> Response:
    """It is checked, stored, and then live: the very next request uses it."""
    service.check_serving()
    template = await _parse_template(request)
    record = await templates.publish(name, template, FROM_UPLOAD, live=live)
    if live:
        await warming.warm(name)
    replicas = await waiting.replicas(templates.names, name)
    return json_answer(template_out(templates, record, replicas))


async def _pointers(
    service: TheService, templates: TheTemplates, warming: TheWarming, waiting: TheWaiting
) -> Pointers:
    def answer(record: Record, replicas: list[ReplicaOut] | None) -> Response:
        return json_answer(template_out(templates, record, replicas))

    names = templates.names
    return Pointers(service, names, names.rollback, names.promote, warming.warm, answer, waiting)


add_routes(admins, "a template", TemplateOut, _pointers)


@admins.delete(
    "/{name}",
    summary="Remove a template with its versions",
    status_code=204,
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
