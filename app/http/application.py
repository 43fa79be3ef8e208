"""Wiring: settings and an engine in, an ASGI application out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from app.access.door import Door
from app.access.usage import UsageBook
from app.adapters.archive import MAX_CONFIG_BYTES
from app.adapters.folder import AdapterFolder
from app.adapters.intake import Intake
from app.adapters.registry import AdapterRegistry
from app.engine.protocol import Engine
from app.errors import SoftserveError
from app.http.browsers import OwnSite
from app.http.ending import count_from_zero
from app.http.errors import install_error_handlers
from app.http.middleware import (
    REQUEST_ID_HEADER,
    AbsoluteForm,
    BodyLimit,
    Lingering,
    RequestContext,
)
from app.http.requests import SESSION_HEADER
from app.http.routes import routes_for
from app.serving.admission import Admission
from app.serving.few_shot import FewShot
from app.serving.lifecycle import Lifecycle
from app.serving.observation import observe, observe_origin
from app.serving.openai import OpenAIService
from app.serving.service import Service
from app.serving.shadowing import Shadowing
from app.serving.sharing import follower_of
from app.serving.warming import Warming
from app.serving.watchdog import Watchdog
from app.settings import Settings
from app.tasks import end
from app.telemetry.metrics import Metrics
from app.templates.folder import TemplateFolder
from app.templates.registry import TemplateRegistry
from app.versions.location import store_folder
from app.versions.watcher import FolderWatcher
from softserve import __version__

DESCRIPTION = (
    "One base model on vLLM, and adapters picked per request. Greedy decoding unless asked "
    "otherwise; no field is accepted and ignored; every error has the same body and says what to "
    "do."
)
# What the openai client sends from a page besides.
STAINLESS = (
    *("lang", "package-version", "os", "arch", "runtime", "runtime-version", "async"),
    *("retry-count", "timeout", "read-timeout", "helper-method"),
)
ALLOWED_HEADERS = (
    *("authorization", "content-type", "openai-organization", "openai-project"),
    *(f"x-stainless-{name}" for name in STAINLESS),
)


def create_app(
    settings: Settings,
    engine: Engine,
    on_failure: Callable[[SoftserveError], None],
    stop: Callable[[], None],
) -> FastAPI:
    """The whole server. The engine starts with the app's lifespan, in the background.

    `on_failure` hears of an engine that cannot start or has died; `stop` begins the drain.

    Raises:
        StartError: the file of keys, or the origin, cannot be used.
    """
    door = Door(settings)
    book = UsageBook(store_folder(settings))
    metrics = Metrics(settings.max_metric_names)
    count_from_zero(metrics)
    admission = Admission(
        settings.max_sequences_in_flight,
        settings.max_waiting_prompt_tokens,
        settings.max_running_sequences,
    )
    adapters = AdapterRegistry(engine, settings, metrics)
    intake = Intake(engine, adapters, settings)
    templates = TemplateRegistry(engine, settings)
    observe(metrics, door, admission, adapters, templates, settings.max_loras)
    shadowing = Shadowing(engine, adapters, admission)
    service = Service(engine, adapters, admission, shadowing, book, metrics, settings)
    warming = Warming(engine, adapters, templates)
    adapter_folder = AdapterFolder(intake, settings.adapter_dir, settings.adapter_root)
    template_folder = TemplateFolder(templates, settings.template_dir, warming.warm)
    follower = follower_of(settings, adapters, intake, templates, warming)

    may_publish = None if follower is None else lambda: follower.publishes

    def show_memory() -> None:
        weights = engine.info.weights
        for part, num_bytes in (("linear", weights.linear_bytes), ("other", weights.other_bytes)):
            metrics.weight_bytes.labels(weights.precision, part).set(num_bytes)
        metrics.kv_cache_bytes.set(engine.info.kv_cache_bytes)

    if follower is not None:
        observe_origin(metrics, follower)

    lifecycle = Lifecycle(
        engine,
        adapters,
        templates,
        book,
        follower,
        FolderWatcher(adapters.names, adapter_folder, may_publish),
        FolderWatcher(templates.names, template_folder, may_publish),
        warming,
        admission,
        Watchdog(engine, admission, settings.engine_timeout_seconds),
        show_memory,
        on_failure,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(door.watch())
        lifecycle.begin()
        yield
        await end([watching])
        await shadowing.close()
        await lifecycle.end()

    app = FastAPI(
        title="softserve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        # As they are: `include_router` would make each of them anew, which takes the longest here.
        routes=list(routes_for(settings)),
        redirect_slashes=False,
        # The guard's: routes/docs.py.
        openapi_url=None,
        # A template is shown as it is sent.
        separate_input_output_schemas=False,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.service = service
    app.state.few_shot = FewShot(service, templates)
    app.state.openai = OpenAIService(service, app.state.few_shot)
    app.state.templates = templates
    app.state.warming = warming
    app.state.adapters = adapters
    app.state.intake = intake
    app.state.follower = follower
    app.state.lifecycle = lifecycle
    app.state.door = door
    app.state.book = book
    app.state.stop = stop
    _answer_head(app)
    install_error_handlers(app)
    _add_middleware(app, settings, door, metrics)
    return app


def _add_middleware(app: FastAPI, settings: Settings, door: Door, metrics: Metrics) -> None:
    """What surrounds every request; the last one is the outermost."""
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.max_body_bytes,
        # The two files, and what a form puts around them.
        max_form_bytes=settings.max_adapter_bytes + 2 * MAX_CONFIG_BYTES,
    )
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=[*ALLOWED_HEADERS, REQUEST_ID_HEADER, SESSION_HEADER],
            expose_headers=[REQUEST_ID_HEADER, "retry-after"],
        )
    app.add_middleware(OwnSite, origins=settings.cors_origin, hosts=_hosts(settings, door))
    app.add_middleware(RequestContext, metrics=metrics)
    app.add_middleware(Lingering)
    app.add_middleware(AbsoluteForm)


def _hosts(settings: Settings, door: Door) -> set[str] | None:
    """The names that the server answers to; None is any.

    A page that is led here by a name of its own has no key; and by which names a network knows the
    server, only its operator can say.
    """
    if settings.trusted_host or door.is_for_this_machine:
        return {settings.host.lower(), *settings.trusted_host}
    return None


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
