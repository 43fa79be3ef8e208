"""What the routes share: the server's parts, who asks, and what every endpoint may answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel

from app.access.caller import Caller
from app.access.door import Door
from app.access.usage import UsageBook
from app.adapters.intake import Intake
from app.adapters.registry import AdapterRegistry
from app.errors import InvalidRequest
from app.http.answers import replica_out
from app.serving.few_shot import FewShot
from app.serving.openai import OpenAIService
from app.serving.service import Service
from app.serving.warming import Warming
from app.templates.registry import TemplateRegistry
from app.versions.names import Names
from app.versions.origin.following import Follower
from softserve.schema.errors import ErrorAnswer
from softserve.schema.versions import ReplicaOut, Wait

Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    400: {"model": ErrorAnswer, "description": "The body is not JSON."},
    413: {"model": ErrorAnswer, "description": "The body is over the size limit."},
    422: {"model": ErrorAnswer, "description": "The request is wrong; the message says how."},
    503: {
        "model": ErrorAnswer,
        "description": "Full, starting, draining, engine down, or a store that cannot be written; "
        "see the retry-after header.",
    },
}
NOT_READY: Responses = {503: ERRORS[503]}
NOT_FOUND: Responses = {404: {"model": ErrorAnswer, "description": "No such name or version."}}
UNPERMITTED: Responses = {
    401: {"model": ErrorAnswer, "description": "A key is needed, or this one is not known."},
    403: {"model": ErrorAnswer, "description": "The key lacks the role, or may not use the name."},
}
REFUSALS: Responses = ERRORS | {
    409: {"model": ErrorAnswer, "description": "It contradicts what is there."},
}
EVENT_STREAM: Responses = {
    200: {
        "description": "The completions; with `stream`, as server-sent events: "
        '`data: {"prompt_index", "index", "text"}` per piece of text, one with `finish_reason`, '
        "`usage` and `timings` per completion, then `data: [DONE]`. A failure on the way is "
        "`event: error` with the one error body.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def _part(name: str) -> Any:
    """What `create_app` has put there under this name."""

    async def part(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(part)


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


TheService = Annotated[Service, _part("service")]
TheOpenAI = Annotated[OpenAIService, _part("openai")]
TheFewShot = Annotated[FewShot, _part("few_shot")]
TheAdapters = Annotated[AdapterRegistry, _part("adapters")]
TheIntake = Annotated[Intake, _part("intake")]
TheTemplates = Annotated[TemplateRegistry, _part("templates")]
TheWarming = Annotated[Warming, _part("warming")]
TheDoor = Annotated[Door, _part("door")]
TheBook = Annotated[UsageBook, _part("book")]
TheStop = Annotated[Callable[[], None], _part("stop")]
TheCaller = Annotated[Caller, Depends(_caller)]

# Of what is added.
Live = Annotated[
    bool,
    Query(
        description="`false` puts the version beside the live one, for a split, a shadow, or "
        "requests that name it as `NAME@VERSION`."
    ),
]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Whether an answer waits for all replicas; `follower` is None where there are no others."""

    follower: Follower | None
    for_all: bool

    async def replicas(self, names: Names[Any], name: str) -> list[ReplicaOut] | None:
        """Every replica that is alive, once they serve a name as it is now; None: not asked for."""
        if not self.for_all or self.follower is None:
            return None
        return [replica_out(each) for each in await self.follower.wait_for_all(names, name)]


async def _waiting(
    follower: Annotated[Follower | None, _part("follower")],
    wait: Annotated[
        Wait | None,
        Query(
            description="`all`, with an origin: answer when every replica that is alive serves "
            "it, and say which; after a minute at most."
        ),
    ] = None,
) -> Waiting:
    if wait is not None and follower is None:
        raise InvalidRequest(
            "wait=all is about the replicas of an --origin, and this server has none: leave it out",
            param="wait",
        )
    return Waiting(follower, wait is not None)


TheFollower = Annotated[Follower | None, _part("follower")]
TheWaiting = Annotated[Waiting, Depends(_waiting)]


def json_answer(answer: BaseModel) -> Response:
    """The answer as it is: FastAPI would validate it a second time."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")
