"""`/`: the playground, a page for a browser. Its files need no key; what it asks for does."""

from pathlib import Path

from fastapi import APIRouter, Request, Response

from app.http.files import Compressed, Files

FOLDER = Path(__file__).parents[1] / "playground"
# No script or style but the files of this server, no HTML made of strings (trusted types), and no
# request to anywhere else, whatever a model or a template writes.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # A new version of the server has new files under the same names; the ETag spares the rest.
    "cache-control": "no-cache",
}

files = Files(FOLDER, HEADERS)
router = APIRouter(route_class=Compressed, include_in_schema=False)
routers = (router,)


@router.get("/")
async def page(request: Request) -> Response:
    return await files.answer("index.html", request)


@router.get("/playground/{path:path}")
async def file(path: str, request: Request) -> Response:
    return await files.answer(path, request)
