"""OpenAI's protocol: `/v1`, `/tokenize` and `/detokenize`."""

from fastapi import Request, Response

from app.access.caller import Caller
from app.http.dependencies import (
    ERRORS,
    NOT_READY,
    Responses,
    TheCaller,
    TheOpenAI,
)
from app.http.guard import router_for
from app.http.media_types import JSON
from app.http.openai_requests import openai_request
from app.http.streaming import DONE, EventStream, until_disconnect, whole
from app.serving.openai import OpenAIService
from softserve.schema.errors import ErrorAnswer
from softserve.schema.openai import (
    ChatBody,
    CompletionsBody,
    DetokenizeBody,
    ModelList,
    ModelOut,
    OpenAISampling,
    ResponsesBody,
    TokenizeBody,
)

generators = router_for("user", generates=True)
users = router_for("user")
routers = (generators, users)

ANSWERS: Responses = {
    200: {
        "description": "As OpenAI answers; with `stream`, as server-sent events. A failure on the "
        "way is `event: error` with the one error body.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
REFUSALS: Responses = {
    "4XX": {"model": ErrorAnswer, "description": "The request is wrong; the message says how."},
    503: ERRORS[503],
}


@generators.post("/v1/completions", summary="Complete prompts", responses=ANSWERS | REFUSALS)
async def completions(
    body: CompletionsBody, request: Request, caller: TheCaller, openai: TheOpenAI
) -> Response:
    return await _answer(request, caller, openai, body)


@generators.post("/v1/chat/completions", summary="Go on with a chat", responses=ANSWERS | REFUSALS)
async def chat(body: ChatBody, request: Request, caller: TheCaller, openai: TheOpenAI) -> Response:
    return await _answer(request, caller, openai, body)


@generators.post("/v1/responses", summary="Go on with a conversation", responses=ANSWERS | REFUSALS)
async def responses(
    body: ResponsesBody, request: Request, caller: TheCaller, openai: TheOpenAI
) -> Response:
    return await _answer(request, caller, openai, body)


@users.get("/v1/models", summary="List the models", responses=NOT_READY)
async def models(caller: TheCaller, openai: TheOpenAI) -> ModelList:
    return ModelList(data=openai.models(caller))


@users.get("/v1/models/{model:path}", summary="Show one model", responses=REFUSALS)
async def model(model: str, caller: TheCaller, openai: TheOpenAI) -> ModelOut:
    return openai.model(caller, model)


@users.post("/tokenize", summary="Make tokens of a text or a chat", responses=ANSWERS | REFUSALS)
async def tokenize(body: TokenizeBody, caller: TheCaller, openai: TheOpenAI) -> Response:
    fields = body.model_dump(exclude_unset=True, exclude_none=True, exclude={"model"})
    return _json(await openai.tokenize(caller, body.model, fields))


@users.post("/detokenize", summary="Make a text of tokens", responses=ANSWERS | REFUSALS)
async def detokenize(body: DetokenizeBody, caller: TheCaller, openai: TheOpenAI) -> Response:
    return _json(await openai.detokenize(caller, body.model, body.tokens))


async def _answer(
    request: Request, caller: Caller, openai: OpenAIService, body: OpenAISampling
) -> Response:
    asked = openai_request(body, request)
    running = openai.answer(caller, asked)
    if body.stream:
        # The events of Responses end with one of their own.
        last = () if asked.operation == "responses" else (DONE,)
        return EventStream(running, lambda _, event: (event,), last)
    answer = whole(running, request.state)
    return _json(b"".join(await until_disconnect(request.receive, answer)))


def _json(answer: bytes) -> Response:
    return Response(answer, media_type=JSON)
