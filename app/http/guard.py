"""Routes that are entered with a role: who asks is known before the body is read."""

import ipaddress
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from app.access.door import Area, Door
from app.http.browsers import is_of_no_other_page
from app.http.dependencies import UNPERMITTED
from app.serving.service import Service
from softserve.schema.keys import Role

# A proxy's requests come from this machine, whoever sends them.
SENT_FOR_OTHERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
# For the OpenAPI document; what comes is read below.
BEARER = HTTPBearer(auto_error=False, description="A key, or the server's --admin-key.")

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def router_for(
    *roles: Role, prefix: str = "", area: Area | None = None, generates: bool = False
) -> APIRouter:
    """A router whose routes need one of these roles, unless their area is open to everybody.

    FastAPI reads a body before it asks a dependency; a route's handler comes before both.
    """

    class Guarded(APIRoute):
        def get_route_handler(self) -> Handler:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                door: Door = request.app.state.door
                if area is None or not door.is_open(area):
                    caller = door.caller(_secret(request), is_local=_is_local(request))
                    request.state.caller = caller
                    door.require(caller, roles)
                if generates:
                    service: Service = request.app.state.service
                    service.admission.check(request.state.caller)
                return await handle(request)

            return guarded

    return APIRouter(
        prefix=prefix,
        route_class=Guarded,
        dependencies=[Depends(BEARER)],
        responses=UNPERMITTED,
    )


def _secret(request: Request) -> bytes | None:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    # Latin-1 gives a header's bytes back as they came.
    return secret.encode("latin-1") if scheme.lower() == "bearer" else None


def _is_local(request: Request) -> bool:
    """Whether it comes from this machine, and for nobody else: a browser's may be any page's."""
    is_for_another = any(header in request.headers for header in SENT_FOR_OTHERS)
    if request.client is None or is_for_another or not is_of_no_other_page(request.headers):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
