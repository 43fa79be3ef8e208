"""What is known before the first user asks: the options, what the server has, the right texts."""

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtest.options import Options
from loadtest.users.asking import AskingUser, Load
from loadtest.users.checks import Checks, key_of
from loadtest.users.questions import VERSIONED, Names
from loadtest.users.targets import find_targets
from softserve.client import Call, Client, ClientError, as_model
from softserve.schema.generation import GenerateAnswer
from softserve.schema.icl import TemplateUsed

ALONE = "texts_alone"

logger = logging.getLogger(__name__)
# It has a line for each request of the administration.
logging.getLogger("httpx").setLevel(logging.WARNING)


class Alone(GenerateAnswer):
    """An answer of `/generate`, or of `/icl/generate`, which names a template too."""

    template: TemplateUsed | None = None


class Preparation:
    """Of one process: alone, the master, or a worker.

    What each version says alone is asked for once, and sent to the workers.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        # The texts that one host gave.
        self._alone: dict[str, str] = {}
        self._alone_host: str | None = None
        environment.events.test_start.add_listener(self._start)
        if isinstance(environment.runner, WorkerRunner):
            environment.runner.register_message(ALONE, self._hear)
        elif environment.host:
            self._begin_early()

    def _begin_early(self) -> None:
        """Where the host is known: it costs nothing of --run-time."""
        try:
            load = self._load()
            self._leave_out_who_cannot_ask(load)
            self._ask_alone(load)
        except ClientError as error:
            sys.exit(f"loadtest: {error}")

    def _leave_out_who_cannot_ask(self, load: Load) -> None:
        """Those who would ask for what the server does not have get no share of the users."""
        able = [each for each in self._users() if each.choices(load)]
        for each in set(self._users()) - set(able):
            logger.warning("%s has nothing to ask for on this server", each.__name__)
        if not able:
            sys.exit("loadtest: none of the user classes has anything to ask for on this server")
        self._environment.user_classes = list(able)

    def _start(self, environment: Environment, **_: Any) -> None:
        try:
            load = self._load()
            self._ask_alone(load)
        # The second is of what was written into the form of the web interface.
        except (ClientError, ValueError) as error:
            raise StopTest(f"loadtest: {error}") from None
        AskingUser.load = load
        if isinstance(environment.runner, MasterRunner):
            environment.runner.send_message(ALONE, self._alone)

    def _ask_alone(self, load: Load) -> None:
        host = self._environment.host
        is_worker = isinstance(self._environment.runner, WorkerRunner)
        if load.options.compared_share and not is_worker and host != self._alone_host:
            logger.info("asking each version alone")
            self._alone.clear()
            self._alone.update(texts_alone(self._client(), load, self._users()))
            self._alone_host = host

    def _load(self) -> Load:
        options = self._options()
        AskingUser.default_headers = (
            {"authorization": f"Bearer {options.key}"} if options.key else {}
        )
        # What is learned later is known to these checks too.
        load = Load(options, find_targets(self._client(), options), Checks(alone=self._alone))
        for name, versions in load.targets.versions().items():
            load.checks.live.begin(name, versions)
        return load

    def _options(self) -> Options:
        assert self._environment.parsed_options is not None, "locust was started without options"
        return Options.of(self._environment.parsed_options)

    def _client(self) -> Client:
        return Client(str(self._environment.host), self._options().key, retry_seconds=0)

    def _users(self) -> list[type[AskingUser]]:
        return [each for each in self._environment.user_classes if issubclass(each, AskingUser)]

    def _hear(self, msg: Any, **_: Any) -> None:
        self._alone.clear()
        self._alone.update(msg.data)


def texts_alone(client: Client, load: Load, users: Iterable[type[AskingUser]]) -> Mapping[str, str]:
    """What the users' requests are answered while there are no others, by `key_of`."""
    texts: dict[str, str] = {}
    for user in users:
        with user.alone(load, client) as choices:
            for names in choices:
                texts.update([_text_alone(client, load, user, names)])
    return texts


def _text_alone(
    client: Client, load: Load, user: type[AskingUser], names: Names
) -> tuple[str, str]:
    question = user.compared_question(load, names)
    answer = client.send(Call("POST", question.path, as_model(Alone), question.body))
    used = {each: getattr(answer, each) for each in VERSIONED if each in question.body}
    versions = {each: one.version for each, one in used.items()}
    return key_of(question, versions), answer.completions[0].text
