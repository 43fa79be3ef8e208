"""Which of a step's encoder outputs is which request's.

vLLM 0.32 encodes the inputs of a step in the order in which they were scheduled, and writes what
cross-attention makes of them to the places of the requests in the order of the batch. After a
preemption these differ, and requests get each other's inputs. Here the inputs are sorted by the
batch (tests/server/test_encoder_decoder.py fails without it).
"""

from dataclasses import replace
from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_batch_inputs = GPUModelRunner._batch_mm_inputs_from_scheduler  # noqa: SLF001


def register() -> None:
    """Have vLLM's runner encode in the order of its batch."""
    GPUModelRunner._batch_mm_inputs_from_scheduler = _batch_inputs_in_order  # noqa: SLF001


def _batch_inputs_in_order(runner: Any, scheduler_output: Any) -> Any:
    if runner.model_config.is_encoder_decoder:
        place = runner.input_batch.req_id_to_index
        scheduled = scheduler_output.scheduled_encoder_inputs
        in_order = dict(sorted(scheduled.items(), key=lambda each: place[each[0]]))
        scheduler_output = replace(scheduler_output, scheduled_encoder_inputs=in_order)
    return _batch_inputs(runner, scheduler_output)
