"""`/generate` and `/inspect`."""

from dataclasses import asdict

from fastapi import Request, Response

from app.http.answers import adapters_used
from app.http.dependencies import ERRORS, EVENT_STREAM, TheCaller, TheService, json_answer
from app.http.guard import router_for
from app.http.requests import generation_request, inspection_request, prompt_sources
from app.http.streaming import answer, until_disconnect
from softserve.schema.generation import GenerateAnswer, GenerateBody
from softserve.schema.inspection import InspectAnswer, InspectBody, TokenFateOut

router = router_for("user", generates=True)
routers = (router,)


@router.post(
    "/generate",
    summary="Complete one prompt or several",
    response_model=GenerateAnswer,
    responses=ERRORS | EVENT_STREAM,
)
async def generate(
    body: GenerateBody, request: Request, caller: TheCaller, service: TheService
) -> Response:
    sources = prompt_sources(body)
    asked = generation_request(body, request, len(sources))
    running = service.generate(caller, asked, sources)
    return await answer(request, running, body)


@router.post(
    "/inspect",
    summary="See what the sampling controls do to the next token",
    response_model=InspectAnswer,
    responses=ERRORS,
)
async def inspect(
    body: InspectBody, request: Request, caller: TheCaller, service: TheService
) -> Response:
    asked = inspection_request(body, request)
    engine = service.engine
    (source,) = prompt_sources(body)
    inspecting = service.inspect(caller, asked, source, body.num_tokens)
    inspection = await until_disconnect(request.receive, inspecting)
    return json_answer(
        InspectAnswer(
            id=asked.request_id,
            model=engine.info.model,
            **adapters_used(inspection.adapters),
            prompt_tokens=inspection.prompt.num_tokens,
            virtual_tokens=inspection.prompt.num_virtual_tokens,
            vocabulary_size=engine.info.vocabulary_size,
            tokens=[
                TokenFateOut(**asdict(fate), token=engine.token_text(fate.token_id))
                for fate in inspection.distribution.tokens
            ],
            num_surviving=inspection.distribution.num_surviving,
            surviving_mass=inspection.distribution.surviving_mass,
            sampling=asked.sampling,
        )
    )
