"""The command line's side of the HTTP interface."""

from typing import Any

import httpx

TIMEOUT_SECONDS = 120.0


class ClientError(Exception):
    """The server cannot be reached, or refuses: a sentence for the terminal."""


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST a JSON body and return the JSON answer. Raises `ClientError`."""
    try:
        response = httpx.post(url.rstrip("/") + path, json=body, timeout=TIMEOUT_SECONDS)
        answer: dict[str, Any] = response.json()
    except httpx.InvalidURL:
        raise ClientError(f"{url} is not a URL: write it as http://HOST:PORT") from None
    except httpx.HTTPError as error:
        raise ClientError(
            f"no answer from {url} ({error}): start a server with `softserve serve`, or name "
            "another with --url"
        ) from None
    except ValueError:
        raise ClientError(f"{url} does not answer as softserve does: check --url") from None
    if response.is_error:
        raise ClientError(str(answer["error"]["message"]))
    return answer
