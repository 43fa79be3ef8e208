"""What is asked of a server: one request, and how its answer reads."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel

from softserve.client.uploads import Upload

Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)
Model = TypeVar("Model", bound=BaseModel)

JSON_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer_co]):
    """One request. `read` makes the answer from the body of a response.

    `patient`: it takes as long as it takes, as loading a gigabyte does.
    """

    method: str
    path: str
    read: Callable[[bytes], Answer_co]
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    upload: Upload | None = None
    patient: bool = False

    @contextmanager
    def request(
        self, http: httpx.Client | httpx.AsyncClient, timeout: httpx.Timeout
    ) -> Iterator[httpx.Request]:
        """The request, and while it is sent the files that it is read from."""
        with ExitStack() as opened:
            content: dict[str, Any] = {}
            if self.upload is not None:
                content = {
                    "files": [("file", each) for each in self.upload.open(opened)],
                    "data": self.upload.fields,
                }
            elif self.body is not None:
                # ASCII: also what is no text gets there, to be refused with a sentence.
                encoded = json.dumps(self.body, allow_nan=False).encode()
                content = {"content": encoded, "headers": JSON_HEADERS}
            yield http.build_request(
                self.method, self.path, params=self.query or None, timeout=timeout, **content
            )


def as_model(model: type[Model]) -> Callable[[bytes], Model]:
    return model.model_validate_json


def as_text(content: bytes) -> str:
    return content.decode()


def as_nothing(content: bytes) -> None:
    """An answer without content."""
