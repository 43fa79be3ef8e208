"""A user that asks: it times the pieces of each answer, and has the answer checked."""

import json
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, ResponseContextManager
from locust.env import Environment
from locust.exception import StopUser

from loadtest.events import EVENT_END, holds_text
from loadtest.options import Options
from loadtest.users.answers import Answer, Outcome
from loadtest.users.checks import Checks, WrongAnswer
from loadtest.users.questions import Names, Question, random_words, the_same_words
from loadtest.users.received import Received
from loadtest.users.targets import Targets
from softserve.client import Client

ANSWER_TIMEOUT_SECONDS = 300.0
MAX_CONNECTIONS = 10_000
REFUSALS: dict[int, Outcome] = {429: "429", 503: "503"}
# After a failure, which a server that is gone would give thousands of times a second, and after a
# refusal without Retry-After.
RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """What the users of one process share."""

    options: Options
    targets: Targets
    checks: Checks


class AskingUser(FastHttpUser):
    """What the user classes have in common.

    With a rate it is an open loop: each request has a greenlet of its own, and the next one comes
    whether or not it has been answered.
    """

    abstract = True
    concurrency = MAX_CONNECTIONS
    network_timeout = ANSWER_TIMEOUT_SECONDS
    load: ClassVar[Load]
    streams: ClassVar[bool] = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        # A refusal is an answer, too: its body is read, and its connection kept.
        agent = self.client.client
        agent.valid_response_codes = frozenset(range(200, 600))  # type: ignore[misc]
        self._arrived = Group()
        self._names = self.in_order(self.choices(self.load))

    # What a class is.

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        """What its requests name, each of them at times; nothing: it cannot ask this server."""
        raise NotImplementedError

    def in_order(self, choices: list[Names]) -> Iterator[Names]:
        return cycle(choices)

    @classmethod
    def question(cls, load: Load, names: Names) -> Question:
        return random_words(load.options.prompt_words, load.options.new_tokens, names)

    @classmethod
    def compared_question(cls, load: Load, names: Names) -> Question:
        return the_same_words(names)

    @classmethod
    @contextmanager
    def alone(cls, load: Load, client: Client) -> Iterator[list[Names]]:
        """What to ask for before the load, to compare with."""
        yield cls.choices(load)

    # What locust calls.

    def on_start(self) -> None:
        if not self.choices(self.load):
            logger.warning("%s has nothing to ask for on this server", type(self).__name__)
            raise StopUser

    def on_stop(self) -> None:
        """What has arrived is answered, as far as --stop-timeout allows."""
        self._arrived.join(timeout=self.environment.stop_timeout)
        self._arrived.kill()

    def wait_time(self) -> float:
        rate = self.load.options.requests_per_second
        return random.expovariate(rate) if rate else 0.0

    @task
    def ask(self) -> None:
        options, names = self.load.options, next(self._names)
        is_compared = random.random() < options.compared_share
        question = (self.compared_question if is_compared else self.question)(self.load, names)
        if options.requests_per_second:
            self._arrived.spawn(self.ask_until_answered, question)
        else:
            self.ask_until_answered(question)

    # A request.

    def ask_until_answered(self, question: Question) -> None:
        """A refused request is sent again after Retry-After, and not before."""
        for _ in range(1 + self.load.options.max_retries):
            answer = self.send(question)
            if answer.outcome in {"completed", "left"}:
                return
            gevent.sleep(RETRY_SECONDS if answer.retry_after is None else answer.retry_after)
            if answer.outcome == "failed":
                return

    def send(self, question: Question) -> Answer:
        """Once. Locust is told when it has ended, and the recorder hears it from locust."""
        answer = Answer(type(self).__name__, question.adapter, sent_at=time.time())
        received = Received()
        started = time.perf_counter()
        with self.client.post(
            question.path,
            json=question.body | {"stream": self.streams},
            name=answer.user,
            stream=True,
            catch_response=True,
            context={"answer": answer},
        ) as response:
            try:
                self._receive(response, received, answer, started)
                answer.outcome = self._outcome(question, response, received, answer)
            except (WrongAnswer, *FAILURE_EXCEPTIONS) as error:
                response.failure(error)
            else:
                response.success()
            is_asked = answer.outcome in {"completed", "failed"}
            response.request_meta |= {
                "request_type": "POST" if is_asked else answer.outcome.upper(),
                "response_time": answer.e2e * 1000,
                "response_length": received.num_bytes,
            }
        return answer

    def _receive(
        self, response: ResponseContextManager, received: Received, answer: Answer, started: float
    ) -> None:
        try:
            if response.status_code != 200 or not self.streams:
                received.whole = response.content or b""
                return
            for event in self.events(response):
                if holds_text(event):
                    answer.texts_at.append(time.perf_counter() - started)
                received.events.append(event)
        finally:
            answer.e2e = time.perf_counter() - started

    def events(self, response: ResponseContextManager) -> Iterator[bytes]:
        """As they come. Who leaves stops early."""
        while event := response.stream.readline(EVENT_END):
            yield event

    def _outcome(
        self,
        question: Question,
        response: ResponseContextManager,
        received: Received,
        answer: Answer,
    ) -> Outcome:
        """
        Raises:
            WrongAnswer: it is none, or not the right one.
        """
        if refusal := REFUSALS.get(response.status_code):
            assert response.headers is not None, "a status has headers"
            answer.retry_after = _seconds(response.headers.get("retry-after"))
            return refusal
        if response.status_code != 200:
            raise WrongAnswer(_told(response, received))
        if self.has_left(received):
            return "left"
        try:
            self._check(question, received, answer)
        except (KeyError, ValueError):
            raise WrongAnswer("it is no answer of softserve's") from None
        return "completed"

    def has_left(self, received: Received) -> bool:
        return False

    def _check(self, question: Question, received: Received, answer: Answer) -> None:
        ending, checks = received.ending(), self.load.checks
        answer.prompt_tokens = ending["usage"]["prompt_tokens"]
        answer.completion_tokens = ending["usage"]["completion_tokens"]
        checks.check_length(question, answer.completion_tokens)
        checks.check_labels(question, ending)
        versions = checks.check_versions(question, ending, answer.sent_at)
        if question.is_compared:
            answer.text_was_compared = checks.check_text(question, versions, received.text())


def _seconds(retry_after: Any) -> float | None:
    """None of a date, which a proxy may give instead, and of nothing."""
    return float(retry_after) if str(retry_after).isdecimal() else None


def _told(response: ResponseContextManager, received: Received) -> str:
    """Without what differs by request, so that equal failures are counted together."""
    if not response.status_code:
        return f"no answer: {getattr(response, 'error', None)!r}"
    try:
        error: dict[str, Any] = json.loads(received.whole)["error"]
    except (KeyError, ValueError):
        return f"status {response.status_code}"
    return f"status {response.status_code}, {error['type']}: {error['message']}"
