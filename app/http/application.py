"""Wiring: settings and an engine in, an ASGI application out."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.adapters.archive import MAX_CONFIG_BYTES
from app.adapters.folder import AdapterFolder
from app.adapters.intake import Intake
from app.adapters.registry import AdapterRegistry
from app.engine.protocol import Engine
from app.errors import SoftserveError
from app.http import routes
from app.http.errors import install_error_handlers
from app.http.middleware import AbsoluteForm, BodyLimit, Lingering, RequestContext
from app.serving.admission import Admission
from app.serving.few_shot import FewShot
from app.serving.lifecycle import Lifecycle
from app.serving.service import Service
from app.serving.warming import Warming
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.templates.folder import TemplateFolder
from app.templates.registry import TemplateRegistry
from app.versions.watcher import FolderWatcher
from softserve import __version__

DESCRIPTION = (
    "One base model on vLLM, and adapters picked per request. Greedy decoding unless asked "
    "otherwise; no field is accepted and ignored; every error has the same body and says what to "
    "do."
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
    adapters = AdapterRegistry(engine, settings)
    intake = Intake(engine, adapters, settings)
    templates = TemplateRegistry(engine, settings)
    metrics.adapters_live.set_function(lambda: len(adapters.names.live))
    metrics.adapter_requests.live = lambda: adapters.names.live
    metrics.adapters_loaded.set_function(lambda: adapters.num_loaded)
    service = Service(engine, adapters, admission, metrics, settings)
    warming = Warming(engine, adapters, templates)
    adapter_folder = AdapterFolder(intake, settings.adapter_dir, settings.adapter_root)
    template_folder = TemplateFolder(templates, settings.template_dir, warming.warm)

    def show_memory() -> None:
        weights = engine.info.weights
        for part, num_bytes in (("linear", weights.linear_bytes), ("other", weights.other_bytes)):
            metrics.weight_bytes.labels(weights.precision, part).set(num_bytes)
        metrics.kv_cache_bytes.set(engine.info.kv_cache_bytes)

    lifecycle = Lifecycle(
        engine,
        adapters,
        templates,
        FolderWatcher(adapters.names, adapter_folder),
        FolderWatcher(templates.names, template_folder),
        warming,
        admission,
        show_memory,
        on_failure,
    )

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
        # A template is shown as it is sent.
        separate_input_output_schemas=False,
    )
    app.state.settings = settings
    app.state.service = service
    app.state.few_shot = FewShot(service, templates)
    app.state.templates = templates
    app.state.warming = warming
    app.state.adapters = adapters
    app.state.intake = intake
    app.state.lifecycle = lifecycle
    for family in (routes.generate, routes.adapters, routes.icl, routes.templates, routes.health):
        app.include_router(family.router)
    _answer_head(app)
    install_error_handlers(app)
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.max_body_bytes,
        # The two files, and what a form puts around them.
        max_form_bytes=settings.max_adapter_bytes + 2 * MAX_CONFIG_BYTES,
    )
    app.add_middleware(RequestContext, metrics=metrics)
    app.add_middleware(Lingering)
    app.add_middleware(AbsoluteForm)
    return app


def _answer_head(app: FastAPI) -> None:
    """HEAD on whatever has GET; uvicorn leaves the body out.

    As routes of their own: OpenAPI would list a route of two methods twice under one operation id.
    """
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in route.methods:
            head = copy(route)
            head.methods = {"HEAD"}
            head.include_in_schema = False
            app.router.routes.append(head)
