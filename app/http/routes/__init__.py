"""The endpoints, one file a family."""

from collections.abc import Iterator

from starlette.routing import BaseRoute

from app.http.routes import (
    adapters,
    docs,
    generate,
    health,
    icl,
    keys,
    openai,
    playground,
    templates,
)
from app.settings import Settings

FAMILIES = (generate, openai, adapters, icl, templates, keys, health, docs)


def routes_for(settings: Settings) -> Iterator[BaseRoute]:
    """The routes of a server with these settings."""
    for family in (*FAMILIES, playground) if settings.has_playground else FAMILIES:
        for router in family.routers:
            yield from router.routes
