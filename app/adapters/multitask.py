"""The tasks of a multitask soft prompt, which a request names as `NAME#TASK`."""

import re

from app.errors import AdapterNotFound, InvalidRequest
from softserve.schema.fields import MAX_TASK_DIGITS

TASK = re.compile(rf"[0-9]{{1,{MAX_TASK_DIGITS}}}")


def chosen_task(reference: str, named: str | None, num_tasks: int | None, param: str) -> int | None:
    """The task that `reference` and, behind its #, `named` stand for; None where there are none.

    The only task there is need not be named.

    Raises:
        InvalidRequest: a task is named of what has none, or none where there are several.
        AdapterNotFound: there is no such task.
    """
    if num_tasks is None:
        if named is not None:
            raise InvalidRequest(
                f"{reference} has no tasks: name it without #{named[:64]}", param=param
            )
        return None
    if named is None and num_tasks > 1:
        raise InvalidRequest(
            f"{reference} has {tasks_named(num_tasks)}: name one of them, as {reference}#0",
            param=param,
        )
    if named is None:
        return 0
    if TASK.fullmatch(named) is None or int(named) >= num_tasks:
        raise AdapterNotFound(
            f"{reference} has no task {named[:64]!r}: it has {tasks_named(num_tasks)}", param=param
        )
    return int(named)


def tasks_named(num_tasks: int) -> str:
    return "the task 0 alone" if num_tasks == 1 else f"the tasks 0 to {num_tasks - 1}"
