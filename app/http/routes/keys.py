"""`/keys` and `/usage`: who may use the server, and what they have used."""

from fastapi import Response

from app.http.dependencies import NOT_FOUND, REFUSALS, TheBook, TheCaller, TheDoor
from app.http.guard import router_for
from app.versions.disk import in_thread
from softserve.schema.keys import CreateKey, KeyCreated, KeyList, UsageReport

STORE = "the file of keys"
SEE_ALL = {"operator", "admin"}

admins = router_for("admin", prefix="/keys")
anybody = router_for("user", "operator", "admin")
routers = (admins, anybody)


@admins.get("", summary="List the keys", responses={409: REFUSALS[409]})
async def list_keys(door: TheDoor) -> KeyList:
    return KeyList(keys=[key.out for key in door.file.keys.all])


@admins.post(
    "", summary="Make a key; its secret is shown this once", status_code=201, responses=REFUSALS
)
async def create_key(
    body: CreateKey, caller: TheCaller, door: TheDoor, response: Response
) -> KeyCreated:
    key, secret = await in_thread(STORE, door.create_key, body, caller)
    response.headers["cache-control"] = "no-store"
    return KeyCreated(**key.out.model_dump(), secret=secret)


@admins.delete(
    "/{name}",
    summary="Revoke a key: it is refused from the next request on",
    status_code=204,
    responses=REFUSALS | NOT_FOUND,
)
async def revoke_key(name: str, caller: TheCaller, door: TheDoor) -> Response:
    await in_thread(STORE, door.revoke_key, name, caller)
    return Response(status_code=204)


@anybody.get(
    "/usage", summary="Requests and tokens by key and adapter; with the role user, one's own"
)
async def usage(caller: TheCaller, book: TheBook) -> UsageReport:
    return book.report(None if caller.roles & SEE_ALL else caller.name)
