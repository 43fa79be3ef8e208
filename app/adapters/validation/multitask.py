"""Multitask prompt tuning: rows for each task (https://arxiv.org/abs/2303.02861).

By PEFT's code (its tuners/multitask_prompt_tuning/model.py), they are what the tasks share, times
the product of the task's two factors, in FP32. PEFT makes them in every forward pass; here they are
made once, and served as a soft prompt.
"""

from typing import Any

from app.adapters.multitask import tasks_named
from app.adapters.validation.checked import Checked
from app.adapters.validation.config import AdapterConfig, PositiveInteger, SoftPromptConfig
from app.adapters.validation.names import Tensors
from app.adapters.validation.soft_prompt import TENSOR, read_rows
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.server import Limits

# Each has a matrix for every task.
COLUMNS, ROWS = "prefix_task_cols", "prefix_task_rows"
FLOAT_BYTES = 4


class MultitaskConfig(SoftPromptConfig):
    """The factors have `num_ranks` ranks."""

    num_tasks: PositiveInteger = 1
    num_ranks: PositiveInteger = 1


def check_multitask(
    config: MultitaskConfig,
    tensors: Tensors,
    architecture: Architecture,
    limits: Limits,
    task: int | None,
) -> Checked:
    """The rows of every task, or of the one that is named, which `check_task` has checked.

    Raises:
        AdapterRejected: something is wrong with it.
        AdapterTooLarge: the rows of all tasks take more than an adapter's files may.
    """
    shared = read_rows(config, tensors, architecture, limits, (COLUMNS, ROWS))
    rows = _rows_of_tasks(config, tensors, shared, limits, task)
    facts = {
        "kind": "soft_prompt",
        "num_virtual_tokens": config.num_virtual_tokens,
        "num_tasks": config.num_tasks if task is None else None,
        "task": task,
    }
    return Checked(facts, weights={TENSOR: rows})


def check_task(config: AdapterConfig, task: int | None) -> None:
    """Raises `AdapterRejected` where a task is named that the files do not have."""
    if task is None:
        return
    if not isinstance(config, MultitaskConfig):
        raise AdapterRejected(
            "only a MULTITASK_PROMPT_TUNING adapter has tasks: leave task out", param="task"
        )
    if task >= config.num_tasks:
        raise AdapterRejected(
            f"there is no task {task}: the adapter has {tasks_named(config.num_tasks)}",
            param="task",
        )


def _rows_of_tasks(
    config: MultitaskConfig, tensors: Tensors, shared: Any, limits: Limits, task: int | None
) -> Any:
    """The shape is that of the shared rows, with the number of tasks before where all are made."""
    num_rows, hidden_size = shared.shape
    shape_of_columns = (config.num_tasks, num_rows, config.num_ranks)
    shape_of_rows = (config.num_tasks, config.num_ranks, hidden_size)
    meaning = "(num_tasks, num_virtual_tokens, num_ranks)"
    columns = read_tensor(tensors, COLUMNS, shape_of_columns, meaning)
    rows = read_tensor(tensors, ROWS, shape_of_rows, "(num_tasks, num_ranks, hidden_size)")
    if task is None:
        _check_size(config.num_tasks, shared.numel() * FLOAT_BYTES, limits)
    else:
        columns, rows = columns[task], rows[task]
    made = shared.float() * (columns.float() @ rows.float())
    if not made.isfinite().all():
        raise AdapterRejected(
            f"{COLUMNS} times {ROWS} is not finite: training went wrong, go back to a checkpoint "
            "before that"
        )
    return made


def _check_size(num_tasks: int, bytes_of_one: int, limits: Limits) -> None:
    if (num_bytes := num_tasks * bytes_of_one) > limits.max_adapter_bytes:
        raise AdapterTooLarge(
            f"the rows of its {num_tasks:,} tasks have {num_bytes:,} bytes and the limit is "
            f"{limits.max_adapter_bytes:,}: add it with one task, or start the server with more "
            "--max-adapter-bytes"
        )
