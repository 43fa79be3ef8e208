"""What has come of an answer: events of a stream, or the whole at once."""

import json
from dataclasses import dataclass, field
from typing import Any, cast

from loadtest.users.checks import WrongAnswer

DATA = b"data: "
DONE = b"data: [DONE]\n\n"
ERROR = b"event: error\n"


@dataclass(slots=True)
class Received:
    events: list[bytes] = field(default_factory=list)
    whole: bytes = b""

    @property
    def num_bytes(self) -> int:
        return len(self.whole) + sum(map(len, self.events))

    @property
    def has_ended(self) -> bool:
        return bool(self.whole) or self.events[-1:] == [DONE]

    def ending(self) -> dict[str, Any]:
        """What tells versions, usage and labels.

        Raises:
            WrongAnswer: the stream did not come to a regular end.
        """
        if self.whole:
            return cast(dict[str, Any], json.loads(self.whole))
        if self.has_ended and len(self.events) > 1:
            return _data(self.events[-2])
        if self.events and self.events[-1].startswith(ERROR):
            error = _data(self.events[-1].removeprefix(ERROR))["error"]
            raise WrongAnswer(f"the stream ended with {error['type']}: {error['message']}")
        raise WrongAnswer("the stream broke off")

    def text(self) -> str:
        """Of the one completion."""
        if self.whole:
            text: str = json.loads(self.whole)["completions"][0]["text"]
            return text
        return "".join(_data(event)["text"] for event in self.events[:-1])


def _data(event: bytes) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(event.removeprefix(DATA)))
