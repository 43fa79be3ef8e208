"""Load on a softserve server, for locust.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000
    locust -f loadtest/locustfile.py --host ... --headless -u 16 -t 5m --report results/loadtest

Each user class asks for something else. Each answer is told to locust and to the recorder, which
the reports are made from.
"""

from typing import Any

from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.figures.collection import collect, finish_together
from loadtest.figures.progress import show_progress
from loadtest.figures.recorder import Recorder
from loadtest.figures.report import write_report_at_the_end
from loadtest.figures.web import show_in_web_interface
from loadtest.options import add_options
from loadtest.users.kinds import (
    AdapterMixUser,
    BaseUser,
    FewShotUser,
    LeavingUser,
    LongPromptUser,
    LoraAndSoftPromptUser,
    OneAdapterUser,
    SoftPromptUser,
    WholeAnswerUser,
)
from loadtest.users.preparation import Preparation
from loadtest.users.swapping import SwapUser

# What locust finds here are the users that there can be.
__all__ = [
    "AdapterMixUser",
    "BaseUser",
    "FewShotUser",
    "LeavingUser",
    "LongPromptUser",
    "LoraAndSoftPromptUser",
    "OneAdapterUser",
    "SoftPromptUser",
    "SwapUser",
    "WholeAnswerUser",
]

events.init_command_line_parser.add_listener(add_options)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    Preparation(environment)
    recorder = Recorder()
    collect(environment, recorder)
    finish_together(environment)
    if isinstance(environment.runner, WorkerRunner):
        return
    write_report_at_the_end(environment, recorder)
    show_in_web_interface(environment, recorder)
    show_progress(environment, recorder)
