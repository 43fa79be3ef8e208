"""What can go wrong between a client and a server, in sentences."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from pydantic import ValidationError

from softserve.client.errors import ClientError, Interrupted, NotSoftserve, Refused, Unreachable
from softserve.client.errors import refusal as told_refusal
from softserve.schema.errors import ErrorAnswer

NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@contextmanager
def told_in_sentences(url: str) -> Iterator[None]:
    """The errors of the libraries below become a `ClientError`."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise ClientError(f"{url} is not a URL: write it as http://HOST:PORT") from None
    except NOT_CONNECTED as error:
        raise Unreachable(
            f"no answer from {url} ({error}): start a server with `softserve serve`, or name "
            "the URL of another"
        ) from error
    except httpx.TimeoutException as error:
        raise Interrupted(
            f"{url} was silent for too long: give the client more timeout_seconds"
        ) from error
    except httpx.HTTPError as error:
        raise Interrupted(
            f"the connection to {url} ended before the answer ({error}): look whether the server "
            "still runs"
        ) from error
    except ValidationError as error:
        raise NotSoftserve(f"{url} does not answer as softserve does: check the URL") from error


def refusal_in(response: httpx.Response) -> Refused:
    """The server's own error. Raises `ValidationError` where it is none of softserve's."""
    detail = ErrorAnswer.model_validate_json(response.content).error
    seconds = response.headers.get("retry-after", "")
    # It could be a date: softserve sends none.
    retry_after_seconds = float(seconds) if seconds.isdecimal() else None
    return told_refusal(detail, response.status_code, retry_after_seconds)
