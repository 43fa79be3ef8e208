"""The endpoints, one file a family."""

from app.http.routes import adapters, docs, generate, health, icl, keys, openai, templates

FAMILIES = (generate, openai, adapters, icl, templates, keys, health, docs)

__all__ = ["FAMILIES"]
