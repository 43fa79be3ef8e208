"""From each request to the recorder, and from each worker's recorder to the master's."""

from typing import Any

import gevent
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING, MasterRunner, WorkerRunner

from loadtest.figures.objective import Objective
from loadtest.figures.recorder import Recorder
from loadtest.users.answers import Answer

KEY = "softserve"
FINISH, FINISHED = "finish", "finished"
# Beyond --stop-timeout, for the messages.
FINISH_SECONDS = 10.0


def collect(environment: Environment, recorder: Recorder) -> None:
    """Have the recorder hear of every answer, wherever it came."""
    events = environment.events

    def start(**_: Any) -> None:
        assert environment.parsed_options is not None, "locust was started without options"
        recorder.objective = Objective.parse(environment.parsed_options.slo)
        recorder.clear()

    def add(context: dict[str, Any], **_: Any) -> None:
        answer = context.get("answer")
        if isinstance(answer, Answer):
            recorder.add(answer)
            _add_to_locusts_table(environment, answer)

    def report(data: dict[str, Any], **_: Any) -> None:
        data[KEY] = recorder.take()

    def merge(data: dict[str, Any], **_: Any) -> None:
        recorder.merge(data[KEY])

    events.test_start.add_listener(start)
    events.reset_stats.add_listener(lambda **_: recorder.clear())
    if environment.reset_stats:
        events.spawning_complete.add_listener(lambda **_: recorder.clear())
    events.request.add_listener(add)
    events.worker_report.add_listener(merge)
    if isinstance(environment.runner, WorkerRunner):
        events.report_to_master.add_listener(report)


def finish_together(environment: Environment) -> None:
    """Have the master wait for the workers' last answers.

    By itself it ends half a second after --run-time, and does without those that are still to come.
    """
    runner = environment.runner
    if isinstance(runner, WorkerRunner):

        def finish(**_: Any) -> None:
            runner.stop()
            runner.send_message(FINISHED)

        runner.register_message(FINISH, finish, concurrent=True)
    elif isinstance(runner, MasterRunner):
        finished: set[str] = set()

        def wait_for_workers(**_: Any) -> None:
            busy = {STATE_RUNNING, STATE_SPAWNING}
            workers = {each.id for each in runner.clients.all if each.state in busy}
            finished.clear()
            runner.send_message(FINISH)
            with gevent.Timeout(environment.stop_timeout + FINISH_SECONDS, False):
                while not workers <= finished:
                    gevent.sleep(0.1)

        runner.register_message(FINISHED, lambda msg, **_: finished.add(msg.node_id))
        environment.events.test_stopping.add_listener(wait_for_workers)


def _add_to_locusts_table(environment: Environment, answer: Answer) -> None:
    """As rows beside the requests' own, where people of locust look; not in its totals."""
    if answer.outcome == "completed":
        for name, seconds in (("TTFT", answer.ttft), ("TPOT", answer.tpot)):
            if seconds is not None:
                environment.stats.get(answer.user, name).log(round(seconds * 1000), 0)
