"""`/info`, `/health` and `/metrics`: what is loaded, and how the server fares."""

from dataclasses import asdict

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.http.dependencies import NOT_READY, TheService
from softserve import __version__
from softserve.schema.server import Health, ModelInfo

router = APIRouter()


@router.get("/info", summary="What is loaded, and the limits in force", responses=NOT_READY)
async def info(service: TheService) -> ModelInfo:
    return ModelInfo(
        **asdict(service.engine.info), server_version=__version__, limits=service.limits
    )


@router.get("/health/live", summary="Whether the process answers")
async def live() -> Health:
    return Health(status="live")


@router.get("/health/ready", summary="Whether requests are taken", responses=NOT_READY)
async def ready(service: TheService) -> Health:
    service.check_serving()
    return Health(status="ready")


@router.get("/metrics", summary="Prometheus metrics, vLLM's included", response_class=Response)
async def metrics(service: TheService) -> Response:
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
