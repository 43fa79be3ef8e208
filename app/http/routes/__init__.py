"""The endpoints, one file a family."""

from collections.abc import Iterator

from fastapi import APIRouter

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


def routers_for(settings: Settings) -> Iterator[APIRouter]:
    """The routers of a server with these settings."""
    for family in (*FAMILIES, playground) if settings.has_playground else FAMILIES:
        yield from family.routers
