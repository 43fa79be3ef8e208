"""`/generate` and `/inspect`."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from app.http.answers import adapters_used
from app.http.dependencies import ERRORS, EVENT_STREAM, RequestId, TheService, json_answer
from app.http.requests import generation_request, inspection_request
from app.http.streaming import Answering, EventStream, collect, until_disconnect
from softserve.schema.generation import GenerateAnswer, GenerateBody
from softserve.schema.inspection import InspectAnswer, InspectBody, TokenFateOut

router = APIRouter()


@router.post(
    "/generate",
    summary="Complete one prompt or several",
    response_model=GenerateAnswer,
    responses=ERRORS | EVENT_STREAM,
)
async def generate(
    body: GenerateBody, request: Request, service: TheService, request_id: RequestId
) -> Response:
    answering = Answering(
        generation_request(body, request_id), service.engine, body.return_token_ids
    )
    chunks = service.generate(answering.request)
    if body.stream:
        first = await until_disconnect(request, anext(chunks))
        return EventStream(answering, first, chunks)
    return json_answer(await until_disconnect(request, collect(answering, chunks)))


@router.post(
    "/inspect",
    summary="See what the sampling controls do to the next token",
    response_model=InspectAnswer,
    responses=ERRORS,
)
async def inspect(
    body: InspectBody, request: Request, service: TheService, request_id: RequestId
) -> Response:
    inspection = inspection_request(body, request_id)
    prompt, distribution = await until_disconnect(request, service.inspect(inspection))
    engine = service.engine
    return json_answer(
        InspectAnswer(
            id=request_id,
            model=engine.info.model,
            **adapters_used(inspection, prompt),
            prompt_tokens=len(prompt.token_ids),
            virtual_tokens=prompt.num_virtual_tokens,
            vocabulary_size=engine.info.vocabulary_size,
            tokens=[
                TokenFateOut(**asdict(fate), token=engine.token_text(fate.token_id))
                for fate in distribution.tokens
            ],
            num_surviving=distribution.num_surviving,
            surviving_mass=distribution.surviving_mass,
            sampling=inspection.sampling,
        )
    )
