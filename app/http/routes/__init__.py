"""The endpoints, one file a family."""

from app.http.routes import adapters, generate, health, icl, templates

__all__ = ["adapters", "generate", "health", "icl", "templates"]
