"""Seeds on a CPU, where a prompt is longer than one step of the engine.

A step that ends within a prompt samples too, and throws the token away. vLLM 0.32 then turns the
generator of a seeded request back, which cannot be done on a CPU: the engine dies of it. Here such
a row draws from no generator of its own, so that there is nothing to turn back.
"""

from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def register() -> None:
    """Have vLLM's runner on a CPU keep the generators from what is thrown away."""
    CPUModelRunner.sample_tokens = _sample_tokens


def _sample_tokens(runner: Any, grammar_output: Any) -> Any:
    # The dictionary, by row, that the sampler reads as well.
    generators = runner.input_batch.generators
    thrown_away = runner.discard_request_mask.np
    unused = {row: generators.pop(row) for row in list(generators) if thrown_away[row]}
    try:
        return GPUModelRunner.sample_tokens(runner, grammar_output)
    finally:
        generators.update(unused)
