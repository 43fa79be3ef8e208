"""`/info`, `/health`, `/metrics` and `/drain`: what is loaded, how the server fares, its end."""

from dataclasses import asdict

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.http.dependencies import NOT_READY, TheService, TheStop
from app.http.guard import router_for
from softserve import __version__
from softserve.schema.server import Health, ModelInfo

everybody = APIRouter()
callers = router_for("user", "operator", "admin", area="docs")
scrapers = router_for("operator", area="metrics")
operators = router_for("operator")
routers = (everybody, callers, scrapers, operators)


@callers.get("/info", summary="What is loaded, and the limits in force", responses=NOT_READY)
async def info(service: TheService) -> ModelInfo:
    return ModelInfo(
        **asdict(service.engine.info), server_version=__version__, limits=service.settings
    )


@everybody.get("/health/live", summary="Whether the process answers")
async def live() -> Health:
    return Health(status="live")


@everybody.get("/health/ready", summary="Whether requests are taken", responses=NOT_READY)
async def ready(service: TheService) -> Health:
    service.check_serving()
    return Health(status="ready")


@scrapers.get("/metrics", summary="Prometheus metrics, vLLM's included", response_class=Response)
async def metrics(service: TheService) -> Response:
    return Response(await service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@operators.post(
    "/drain", summary="End the server as SIGTERM does: what runs may finish", status_code=202
)
async def drain(stop: TheStop) -> Health:
    stop()
    return Health(status="draining")
