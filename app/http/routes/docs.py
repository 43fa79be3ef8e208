"""`/docs`, `/redoc` and `/openapi.json`: FastAPI's own, behind the guard, without a CDN."""

from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from app.http.files import Files
from app.http.guard import router_for

OPENAPI_PATH = "/openapi.json"
TITLE = "softserve"
# Swagger UI and ReDoc, which FastAPI's pages would otherwise fetch from elsewhere.
FILES = Files(Path(fastapi_offline.__file__).with_name("static"), {"cache-control": "no-cache"})
FAVICON = "/docs/favicon.png"

router = router_for("user", "operator", "admin", area="docs")
routers = (router,)


@router.get(OPENAPI_PATH, include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url=OPENAPI_PATH,
        title=TITLE,
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url=FAVICON,
    )


@router.get("/redoc", include_in_schema=False)
async def redoc() -> HTMLResponse:
    return get_redoc_html(
        openapi_url=OPENAPI_PATH,
        title=TITLE,
        redoc_js_url="/docs/redoc.standalone.js",
        redoc_favicon_url=FAVICON,
        with_google_fonts=False,
    )


@router.get("/docs/{path:path}", include_in_schema=False)
async def file(path: str, request: Request) -> Response:
    return await FILES.answer(path, request)
