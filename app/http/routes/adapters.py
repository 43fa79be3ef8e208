"""`/adapters`: show and change the adapters."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Request, Response
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from app.adapters.staging import UploadedFile
from app.errors import InvalidRequest
from app.http.answers import adapter_out, origin_out
from app.http.dependencies import (
    ERRORS,
    NOT_FOUND,
    REFUSALS,
    Live,
    TheAdapters,
    TheCaller,
    TheFollower,
    TheIntake,
    TheService,
    TheWaiting,
)
from app.http.guard import router_for
from app.http.media_types import FORM, media_type
from app.http.requests import json_body
from app.http.routes.pointers import Pointers, add_routes
from softserve.schema.adapters import TASK_AT_UPLOAD, AdapterList, AdapterOut, AdapterSource
from softserve.schema.fields import MAX_TASK_DIGITS

# PEFT writes up to a dozen files; a folder has one of each.
MAX_FILES = 64
TASK = re.compile(rf"[0-9]{{0,{MAX_TASK_DIGITS}}}")
FILES_ARE_SENT_SO = "send the files with `curl -X PUT -F file=@PATH`"
NEITHER_FILES_NOR_SOURCE = (
    f"the body is neither a form nor a source in JSON: {FILES_ARE_SENT_SO}, an archive too, or "
    'say where the server finds them with {"source": "..."} and content-type: application/json'
)

UPLOAD_SCHEMA = {
    "type": "object",
    "properties": {
        "file": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "The two files of a PEFT folder, or one .tar.gz or .zip of it.",
        },
        "force": {
            "type": "string",
            "enum": ["true", "false"],
            "description": "Take an adapter that declares another base model.",
        },
        "task": {"type": "string", "pattern": TASK.pattern, "description": TASK_AT_UPLOAD},
    },
    "required": ["file"],
}

readers = router_for("user", "admin", prefix="/adapters")
admins = router_for("admin", prefix="/adapters")
routers = (readers, admins)


@readers.get(
    "", summary="List the adapters, with their versions", response_model_exclude_unset=True
)
async def list_adapters(
    caller: TheCaller, adapters: TheAdapters, follower: TheFollower
) -> AdapterList:
    records = [each for each in adapters.names.list() if caller.may_use_adapter(each.name)]
    shown = [adapter_out(adapters, record) for record in records]
    if follower is None:
        return AdapterList(adapters=shown)
    return AdapterList(
        adapters=shown, origin=origin_out(follower, adapters, caller.may_use_adapter)
    )


@readers.get(
    "/{name}",
    summary="Show one adapter",
    response_model_exclude_unset=True,
    responses=NOT_FOUND | {422: ERRORS[422]},
)
async def show_adapter(name: str, caller: TheCaller, adapters: TheAdapters) -> AdapterOut:
    caller.require_adapter(name, "name")
    return adapter_out(adapters, adapters.names.get(name, caller.may_use_adapter))


@admins.put(
    "/{name}",
    summary="Add an adapter, or a new version of one",
    response_model_exclude_unset=True,
    responses=REFUSALS,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                FORM: {"schema": UPLOAD_SCHEMA},
                "application/json": {"schema": AdapterSource.model_json_schema()},
            },
        }
    },
)
async def put_adapter(
    name: str,
    request: Request,
    service: TheService,
    adapters: TheAdapters,
    intake: TheIntake,
    waiting: TheWaiting,
    live: Live = True,
) -> AdapterOut:
    """It is checked, stored, loaded, and then live: the very next request uses it."""
    service.check_serving()
    if media_type(request.headers) == FORM:
        async with _form(request) as form:
            files, force, task = _parse_form(form)
            record = await intake.add_upload(name, files, force=force, task=task, live=live)
    else:
        body = await _parse_source(request)
        record = await intake.add_source(
            name, body.source, body.revision, force=body.force, task=body.task, live=live
        )
    return adapter_out(adapters, record, await waiting.replicas(adapters.names, name))


async def _pointers(service: TheService, adapters: TheAdapters, waiting: TheWaiting) -> Pointers:
    async def nothing(name: str) -> None:
        """What is served is loaded already."""

    return Pointers(
        service,
        adapters.names,
        adapters.rollback,
        adapters.promote,
        settle=nothing,
        answer=partial(adapter_out, adapters),
        waiting=waiting,
    )


add_routes(admins, "an adapter", AdapterOut, _pointers)


@admins.delete(
    "/{name}",
    summary="Remove an adapter, once the requests that use it have ended",
    status_code=204,
    responses=REFUSALS | NOT_FOUND,
)
async def remove_adapter(name: str, service: TheService, adapters: TheAdapters) -> Response:
    service.check_serving()
    await adapters.remove(name)
    return Response(status_code=204)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The parts of a form, large ones on disk until the end."""
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=MAX_FILES)
    # Starlette's form of it, where an app is in the scope, and the parser's own.
    except (MultiPartException, HTTPException) as error:
        if isinstance(error, HTTPException) and error.status_code != 400:
            raise
        raise InvalidRequest(f"the body is not a multipart form: {FILES_ARE_SENT_SO}") from error
    try:
        yield form
    finally:
        await form.close()


def _parse_form(form: FormData) -> tuple[list[UploadedFile], bool, int | None]:
    """The files, and the fields `force` and `task`.

    A form has no null: a field that is left empty takes its place.
    """
    files, force, task = [], False, None
    for field, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append(UploadedFile(value.filename or "", value.file))
        elif field == "force" and value.lower() in {"true", "false", ""}:
            force = value.lower() == "true"
        elif field == "force":
            raise InvalidRequest("force is true or false", param="force")
        elif field == "task" and TASK.fullmatch(value):
            task = int(value) if value else None
        elif field == "task":
            raise InvalidRequest("task is the number of a task: 0, 1, ...", param="task")
        elif field == "file":
            raise InvalidRequest(
                "file came without a file name, as a plain field: give its part a filename "
                "(curl -F file=@PATH)",
                param="file",
            )
        else:
            raise InvalidRequest(
                "a form has files, as `file=@PATH`, `force` and `task`: remove the other fields",
                param=field[:64],
            )
    return files, force, task


async def _parse_source(request: Request) -> AdapterSource:
    try:
        return await json_body(AdapterSource, request, otherwise=NEITHER_FILES_NOR_SOURCE)
    except HTTPException as error:
        # No source is as large as a body may be.
        raise HTTPException(error.status_code, NEITHER_FILES_NOR_SOURCE) from error
