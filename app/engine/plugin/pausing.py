"""Pauses requests inside vLLM: they hold no KV cache and no place in the batch, and can go on.

vLLM does the same when its KV cache is full: it preempts a request, computes it again later, mostly
from the prefix cache, and goes on with the next token. Here a preempted request is taken out of the
queue as well. So a paused request is one that the scheduler knows and has in no queue: it is never
scheduled, does not keep the engine busy, and can be aborted as any other.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request, RequestStatus

# Of the only process that talks to the core.
CLIENT_INDEX = 0


def register() -> None:
    """Have the engine core understand the two calls."""
    EngineCore.softserve_pause = _pause
    EngineCore.softserve_resume = _resume


def _pause(core: Any, request_ids: list[str]) -> None:
    """Tokens that the model is making at this moment are still sent."""
    scheduler = core.scheduler
    for request in _unfinished(scheduler, request_ids):
        if request.status == RequestStatus.RUNNING:
            scheduler.running.remove(request)
            scheduler._preempt_request(request, time.monotonic())  # noqa: SLF001
            # Of a request in it, the next step would not send the tokens again.
            scheduler.prev_step_scheduled_req_ids.discard(request.request_id)
        scheduler.waiting.remove_requests([request])
        scheduler.deferred_waiting.discard(request)
    if not scheduler.has_requests():
        # No step follows that would tell of it: the gauges would show them running.
        stats = EngineCoreOutputs(scheduler_stats=scheduler.make_stats())
        core.output_queue.put_nowait((CLIENT_INDEX, stats))


def _resume(core: Any, request_ids: list[str]) -> None:
    """They come first in the queue, in their order: they have waited before."""
    scheduler = core.scheduler
    for request in _unfinished(scheduler, reversed(request_ids)):
        if request.status != RequestStatus.RUNNING and request not in scheduler.waiting:
            scheduler.waiting.prepend_request(request)


def _unfinished(scheduler: Scheduler, request_ids: Iterable[str]) -> Iterator[Request]:
    """Those that have not ended while the call was on its way."""
    for request_id in request_ids:
        request = scheduler.requests.get(request_id)
        if request is not None and not request.is_finished():
            yield request
