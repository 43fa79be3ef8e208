"""`/icl/render` and `/icl/generate`: prompts from templates."""

from fastapi import Request, Response

from app.http.answers import rendered_prompts, template_used
from app.http.dependencies import (
    ERRORS,
    EVENT_STREAM,
    NOT_FOUND,
    TheCaller,
    TheFewShot,
    json_answer,
)
from app.http.guard import router_for
from app.http.requests import few_shot_request
from app.http.streaming import answer, until_disconnect
from softserve.schema.icl import IclGenerateAnswer, IclGenerateBody, RenderAnswer, RenderBody

router = router_for("user", prefix="/icl", generates=True)
routers = (router,)


@router.post(
    "/render",
    summary="Make prompts from a template, and generate nothing",
    response_model=RenderAnswer,
    responses=ERRORS | NOT_FOUND,
)
async def render(
    body: RenderBody, request: Request, caller: TheCaller, few_shot: TheFewShot
) -> Response:
    rendering = few_shot.render(caller, few_shot_request(body, request))
    rendered = await until_disconnect(request.receive, rendering)
    return json_answer(
        RenderAnswer(
            id=request.state.request_id,
            template=template_used(rendered.template),
            prompts=rendered_prompts(rendered),
        )
    )


@router.post(
    "/generate",
    summary="Make prompts from a template, and complete them",
    response_model=IclGenerateAnswer,
    responses=ERRORS | NOT_FOUND | EVENT_STREAM,
)
async def generate(
    body: IclGenerateBody, request: Request, caller: TheCaller, few_shot: TheFewShot
) -> Response:
    running = few_shot.generate(caller, few_shot_request(body, request))
    return await answer(request, running, body)
