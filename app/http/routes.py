"""The endpoints."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from app import __version__
from app.http.schemas import (
    ErrorAnswer,
    GenerateAnswer,
    GenerateBody,
    Health,
    InspectAnswer,
    InspectBody,
    ModelInfo,
    SamplingOut,
    TokenFateOut,
    adapters_used,
)
from app.http.streaming import Answering, EventStream, collect, until_disconnect
from app.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body is not JSON."},
    413: {"model": ErrorAnswer, "description": "The body is over the size limit."},
    422: {"model": ErrorAnswer, "description": "The request is wrong; the message says how."},
    503: {
        "model": ErrorAnswer,
        "description": "Full, starting, draining or engine down; see the retry-after header.",
    },
}
NOT_READY: dict[int | str, dict[str, Any]] = {503: ERRORS[503]}
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completions; with `stream`, as server-sent events: "
        '`data: {"prompt_index", "index", "text"}` per piece of text, one with `finish_reason`, '
        "`usage` and `timings` per completion, then `data: [DONE]`. A failure on the way is "
        "`event: error` with the one error body.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

router = APIRouter()


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


TheService = Annotated[Service, Depends(_service)]
RequestId = Annotated[str, Depends(_request_id)]


def json_answer(answer: BaseModel) -> Response:
    """The answer as it is: FastAPI would validate it a second time."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


@router.post(
    "/generate",
    summary="Complete one prompt or several",
    response_model=GenerateAnswer,
    responses=ERRORS | EVENT_STREAM,
)
async def generate(
    body: GenerateBody, request: Request, service: TheService, request_id: RequestId
) -> Response:
    answering = Answering(body.to_request(request_id), service.engine, body.return_token_ids)
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
    inspection = body.to_request(request_id)
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
            sampling=SamplingOut.of(inspection.sampling),
        )
    )


@router.get("/info", summary="What is loaded, and the limits in force", responses=NOT_READY)
async def info(service: TheService) -> ModelInfo:
    return ModelInfo(
        **asdict(service.engine.info), server_version=__version__, limits=service.limits
    )


@router.get("/health/live", summary="Whether the process answers")
async def live() -> Health:
    return Health(status="live")


@router.get("/health/ready", summary="Whether requests are taken", responses=NOT_READY)
async def ready(service: TheService) -> Health:
    if service.admission.refusal is not None:
        raise service.admission.refusal
    return Health(status="ready")


@router.get("/metrics", summary="Prometheus metrics, vLLM's included", response_class=Response)
async def metrics(service: TheService) -> Response:
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
