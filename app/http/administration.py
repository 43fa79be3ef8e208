"""Who may change adapters and templates: who has the admin key, or else clients on this machine."""

import ipaddress
import secrets
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.errors import KeyRequired, NotPermitted
from app.settings import Settings

# A proxy's requests come from this machine, whoever sends them; a browser's may be any page's.
SENT_FOR_OTHERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")

bearer = HTTPBearer(auto_error=False, description="The server's --admin-key.")


async def require_administrator(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Raises `KeyRequired` or `NotPermitted`. It runs before the body is read."""
    settings: Settings = request.app.state.settings
    if settings.admin_key is not None:
        expected = settings.admin_key.get_secret_value().encode()
        # Latin-1 gives a header's bytes back as they came.
        given = b"" if credentials is None else credentials.credentials.encode("latin-1")
        if not secrets.compare_digest(given, expected):
            raise KeyRequired(
                "this needs the server's admin key: send it as `authorization: Bearer KEY`"
            )
    elif not _comes_from_this_machine(request):
        raise NotPermitted(
            "without an admin key, only direct requests from the server's own machine may change "
            "adapters and templates: start the server with --admin-key"
        )


def _comes_from_this_machine(request: Request) -> bool:
    if request.client is None or any(header in request.headers for header in SENT_FOR_OTHERS):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


Administrator = Depends(require_administrator)
