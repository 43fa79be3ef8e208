"""`/docs`, `/redoc` and `/openapi.json`: FastAPI's own, behind the guard."""

from typing import Any

from fastapi import Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from app.http.guard import router_for

OPENAPI_PATH = "/openapi.json"
TITLE = "softserve"

router = router_for("user", "operator", "admin", area="docs")
routers = (router,)


@router.get(OPENAPI_PATH, include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    return get_swagger_ui_html(openapi_url=OPENAPI_PATH, title=TITLE)


@router.get("/redoc", include_in_schema=False)
async def redoc() -> HTMLResponse:
    return get_redoc_html(openapi_url=OPENAPI_PATH, title=TITLE)
