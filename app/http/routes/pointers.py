"""`rollback`, `split`, `promote` and `shadow`: what a name points to, of adapters and templates."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends

from app.http.dependencies import NOT_FOUND, REFUSALS, Waiting
from app.serving.service import Service
from app.versions.names import Names
from app.versions.records import Record
from softserve.schema.versions import (
    NameFields,
    PromoteBody,
    ReplicaOut,
    RollbackBody,
    ShadowBody,
    SplitBody,
)

# Makes a version of a name live, without one the version that is next.
Flip = Callable[[str, str | None], Awaitable[Record]]


@dataclass(frozen=True, slots=True)
class Pointers:
    """The names of a family, how they are flipped, and what is told of one.

    `settle` is what follows when requests for a bare name may run on other versions; `waiting`
    says whether an answer waits for the other replicas.
    """

    service: Service
    names: Names[Any]
    rollback: Flip
    promote: Flip
    settle: Callable[[str], Awaitable[None]]
    answer: Callable[[Record, list[ReplicaOut] | None], object]
    waiting: Waiting

    async def flip(self, flip: Flip, name: str, body: RollbackBody | PromoteBody | None) -> object:
        self.service.check_serving()
        record = await flip(name, None if body is None else body.version)
        await self.settle(name)
        return await self.answered(record)

    async def answered(self, record: Record) -> object:
        return self.answer(record, await self.waiting.replicas(self.names, record.name))


def add_routes(
    admins: APIRouter,
    a_noun: str,
    answer_type: type[NameFields],
    pointers: Callable[..., Awaitable[Pointers]],
) -> None:
    """Add them to the routes of a family, whose `pointers` are a dependency."""
    The = Annotated[Pointers, Depends(pointers)]  # noqa: N806 (a type)
    route: dict[str, Any] = {
        "response_model": answer_type,
        "response_model_exclude_unset": True,
        "responses": REFUSALS | NOT_FOUND,
    }

    @admins.post(
        "/{name}/rollback", summary=f"Make an older version of {a_noun} live again", **route
    )
    async def roll_back(
        name: str, of: The, body: Annotated[RollbackBody | None, Body()] = None
    ) -> object:
        return await of.flip(of.rollback, name, body)

    @admins.post(
        "/{name}/promote",
        summary=f"Make a version of {a_noun} live that was tried beside the live one",
        **route,
    )
    async def promote(
        name: str, of: The, body: Annotated[PromoteBody | None, Body()] = None
    ) -> object:
        return await of.flip(of.promote, name, body)

    @admins.post(
        "/{name}/split", summary=f"Share the requests for {a_noun} among versions", **route
    )
    async def split(name: str, of: The, body: SplitBody) -> object:
        """Each is made ready first. It ends with a promotion, a rollback or a removal."""
        of.service.check_serving()
        record = await of.names.split(name, body.versions, body.sticky)
        await of.settle(name)
        return await of.answered(record)

    @admins.post(
        "/{name}/shadow",
        summary=f"Have a version of {a_noun} get copies of requests",
        **route,
    )
    async def shadow(name: str, of: The, body: ShadowBody) -> object:
        """The copies are compared with the live answers and thrown away."""
        of.service.check_serving()
        return await of.answered(await of.names.shadow(name, body.version, body.percent))

    @admins.delete(
        "/{name}/shadow",
        summary=f"Have no version of {a_noun} get copies of requests any more",
        **route,
    )
    async def end_shadow(name: str, of: The) -> object:
        of.service.check_serving()
        return await of.answered(await of.names.end_shadow(name))
