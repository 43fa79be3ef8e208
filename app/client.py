"""The command line's side of the HTTP interface."""

from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from app.http.schemas import ErrorAnswer

Answer = TypeVar("Answer", bound=BaseModel)

TIMEOUT_SECONDS = 120.0


class ClientError(Exception):
    """The server cannot be reached, or refuses: a sentence for the terminal."""


def post(url: str, path: str, body: dict[str, Any], answer_type: type[Answer]) -> Answer:
    """POST a JSON body and return the parsed answer. Raises `ClientError`."""
    try:
        response = httpx.post(url.rstrip("/") + path, json=body, timeout=TIMEOUT_SECONDS)
        if response.is_error:
            raise ClientError(ErrorAnswer.model_validate_json(response.content).error.message)
        return answer_type.model_validate_json(response.content)
    except httpx.InvalidURL:
        raise ClientError(f"{url} is not a URL: write it as http://HOST:PORT") from None
    except httpx.HTTPError as error:
        raise ClientError(
            f"no answer from {url} ({error}): start a server with `softserve serve`, or name "
            "another with --url"
        ) from None
    except ValidationError:
        raise ClientError(f"{url} does not answer as softserve does: check --url") from None
