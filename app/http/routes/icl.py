"""`/icl/render` and `/icl/generate`: prompts from templates."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.http.answers import prompt_used, rendered_prompt, template_used
from app.http.dependencies import (
    ERRORS,
    EVENT_STREAM,
    NOT_FOUND,
    RequestId,
    TheInContext,
    TheService,
    json_answer,
)
from app.http.requests import few_shot_request
from app.http.streaming import Answering, EventStream, collect, until_disconnect
from softserve.schema.icl import IclGenerateAnswer, IclGenerateBody, RenderAnswer, RenderBody

router = APIRouter(prefix="/icl")


@router.post(
    "/render",
    summary="Make prompts from a template, and generate nothing",
    response_model=RenderAnswer,
    responses=ERRORS | NOT_FOUND,
)
async def render(
    body: RenderBody, request: Request, in_context: TheInContext, request_id: RequestId
) -> Response:
    prepared = await in_context.prepare(few_shot_request(body, request_id))
    await until_disconnect(request, in_context.render(prepared))
    prompts = [rendered_prompt(prepared, prompt) for prompt in prepared.prompts]
    return json_answer(
        RenderAnswer(id=request_id, template=template_used(prepared), prompts=prompts)
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
    prepared = await in_context.prepare(few_shot_request(body, request_id))

    def of_prompt(index: int) -> dict[str, Any]:
        used = prompt_used(prepared, prepared.prompts[index])
        return {
            "template": template_used(prepared),
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
            template=template_used(prepared),
            prompts=[prompt_used(prepared, prompt) for prompt in prepared.prompts],
        )
    )
