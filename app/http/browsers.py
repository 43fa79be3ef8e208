"""Pages of other sites send nothing here, though a browser on this machine would let them.

A page can have its visitor's browser send requests to any address, this machine's included. They
say where they come from, in `origin` and `sec-fetch-site`, which no page can forge. A page whose
name was made to lead here (DNS rebinding) counts as this site's own, but for the name in `host`.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import NotPermitted
from app.http.errors import refusal_of

OTHER_SITE = (
    "requests from the pages of other sites are refused: start the server with --cors-origin and "
    "the page's origin, as https://HOST"
)
OTHER_HOST = (
    "the host header names neither localhost nor an IP address: use one of these, or start the "
    "server with --trusted-host and the name"
)


class OwnSite:
    """Refuse what comes from another site's page, or under another name."""

    def __init__(
        self, app: ASGIApp, origins: Collection[str], hosts: Collection[str] | None
    ) -> None:
        """`hosts` are the names of this server; None is any."""
        self.app = app
        self.origins = origins
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        answer = refusal_of(Request(scope), NotPermitted(refusal))
        await answer(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        if self.hosts is not None and not _is_called(headers.get("host", ""), self.hosts):
            return OTHER_HOST
        if headers.get("origin") in self.origins or _is_own(headers):
            return None
        return OTHER_SITE


def _is_called(host: str, names: Collection[str]) -> bool:
    """Whether a host header has one of these names, or what no name server decides about."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        name = name.rstrip(".")
    except ValueError:
        return False
    return name in {"", "localhost", *names} or name.endswith(".localhost") or _is_ip_address(name)


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_own(headers: Headers) -> bool:
    """Whether it comes from no page, from one of this server, or from a link that was followed."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in {"same-origin", "none"}:
        return True
    if site is not None:
        is_link = headers.get("sec-fetch-mode") == "navigate" and origin is None
        return is_link and headers.get("sec-fetch-dest") == "document"
    return is_of_no_other_page(headers)


def is_of_no_other_page(headers: Headers) -> bool:
    """Whether it comes from no page, or from one of the very address that it goes to."""
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")
