"""Wiring: settings and an engine in, an ASGI application out."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.admission import Admission
from app.engine.protocol import Engine
from app.errors import SoftserveError
from app.http.errors import install_error_handlers
from app.http.middleware import BodyLimit, RequestContext
from app.http.routes import router
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.service import Service
from app.settings import Settings

DESCRIPTION = (
    "One base model on vLLM. Greedy decoding unless asked otherwise; no field is accepted and "
    "ignored; every error has the same body and says what to do."
)


def create_app(
    settings: Settings, engine: Engine, on_failure: Callable[[SoftserveError], None]
) -> FastAPI:
    """The whole server. The engine starts with the app's lifespan, in the background.

    `on_failure` hears of an engine that cannot start or has died.
    """
    metrics = Metrics()
    admission = Admission(settings.max_sequences_in_flight)
    metrics.sequences_in_flight.set_function(lambda: admission.sequences_in_flight)
    lifecycle = Lifecycle(engine, admission, on_failure)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle.begin()
        yield
        await lifecycle.end()

    app = FastAPI(
        title="softserve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = Service(engine, admission, metrics, settings)
    app.state.lifecycle = lifecycle
    app.include_router(router)
    install_error_handlers(app)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, metrics=metrics)
    return app
