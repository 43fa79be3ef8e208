"""A user that changes its LoRA while it asks for it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, repeat
from pathlib import Path
from uuid import uuid4

import gevent
from gevent import Greenlet
from locust.env import Environment

from loadtest.users.asking import AskingUser, Load
from loadtest.users.questions import Names
from softserve.client import Client, QuotaExceeded, RequestTimedOut, ServerFull

# What locust's statistics call it; the kind of change stands where a request has its method.
CHANGED = "LoRA"


class SwapUser(AskingUser):
    """An operator: replaces, rolls back, adds and removes LoRAs, while it asks for one of them.

    The names are its own, so that it knows what they mean, and are gone in the end.
    """

    fixed_count = 1

    def __init__(self, environment: Environment) -> None:
        self._name = _new_name()
        super().__init__(environment)
        self._client = Client(str(self.host), self.load.options.key, retry_seconds=0)
        # By version.
        self._folders: dict[str, Path] = {}
        self._live = ""
        self._operator: Greenlet | None = None

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        """Each one has a name of its own for it."""
        return [{"adapter": "SwapUser"}] if len(load.options.swap_files) == 2 else []

    def in_order(self, choices: list[Names]) -> Iterator[Names]:
        return repeat({"adapter": self._name})

    @classmethod
    @contextmanager
    def alone(cls, load: Load, client: Client) -> Iterator[list[Names]]:
        """Both versions, whose texts do not depend on the names."""
        with ExitStack() as removal:
            names = []
            for folder in map(Path, load.options.swap_files):
                name = _new_name()
                client.adapters.upload(name, folder)
                removal.callback(client.adapters.remove, name)
                names.append({"adapter": name})
            yield names

    def on_start(self) -> None:
        super().on_start()
        for folder in map(Path, self.load.options.swap_files):
            self._live = str(self._client.adapters.upload(self._name, folder).live)
            self._folders[self._live] = folder
        self.load.checks.live.begin(self._name, [self._live])
        self._operator = gevent.spawn(self._change_again_and_again)

    def on_stop(self) -> None:
        if self._operator is not None:
            self._operator.kill()
        super().on_stop()
        if self._live:
            self._client.adapters.remove(self._name)

    def _change_again_and_again(self) -> None:
        for change in cycle((self._replace, self._roll_back, self._add_and_remove)):
            gevent.sleep(self.load.options.swap_seconds)
            change()

    def _replace(self) -> None:
        """Its time runs from the first byte of the PUT to the first token of the version."""
        with self._changing("REPLACE") as other:
            self._client.adapters.upload(self._name, self._folders[other])
            self._client.generate("Hi", adapter=self._name, max_new_tokens=1)

    def _roll_back(self) -> None:
        with self._changing("ROLLBACK"):
            self._client.adapters.rollback(self._name)

    @contextmanager
    def _changing(self, change: str) -> Iterator[str]:
        """The version that becomes live meanwhile."""
        (other,) = self._folders.keys() - {self._live}
        live = self.load.checks.live
        live.begin(self._name, [other])
        with self._measured(change):
            yield other
            live.keep_only(self._name, other, time.time())
            self._live = other

    def _add_and_remove(self) -> None:
        name = _new_name()
        with self._measured("ADD"):
            self._client.adapters.upload(name, next(iter(self._folders.values())))
        with self._measured("REMOVE"):
            self._client.adapters.remove(name)

    @contextmanager
    def _measured(self, change: str) -> Iterator[None]:
        """In locust's statistics, where it also stands if it fails."""
        with self.environment.events.request.measure(change, CHANGED) as meta:
            try:
                yield
            except (QuotaExceeded, ServerFull, RequestTimedOut) as error:
                meta["request_type"] = str(error.status)


def _new_name() -> str:
    return f"loadtest-{uuid4().hex[:8]}"
