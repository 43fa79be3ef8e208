"""Files for a browser: with ETags, compressed, and with headers that say what they may do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware


class Files:
    """The files of a folder, and the headers that all of them are sent with."""

    def __init__(self, folder: Path, headers: Mapping[str, str]) -> None:
        self._files = StaticFiles(directory=folder)
        self._headers = headers

    async def answer(self, path: str, request: Request) -> Response:
        """The file, or a 304. Raises an `HTTPException` of 404."""
        response = await self._files.get_response(path, request.scope)
        response.headers.update(self._headers)
        return response


class Compressed(APIRoute):
    """A route whose answers are compressed for whoever takes it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app = GZipMiddleware(self.app)
