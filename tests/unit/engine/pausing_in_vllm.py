"""Pauses requests in vLLM's engine core, at every point of their way; test_pausing.py starts it.

    python -m tests.unit.engine.pausing_in_vllm FOLDER

The core runs in this process, so that a pause comes exactly between two of its steps. It prints, as
JSON, the tokens of all requests without a pause and with the pauses of each plan, an engine a line.
"""

import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from app.engine.protocol import AdapterFiles
from app.engine.vllm.device import this_device
from app.engine.vllm.engine import engine_arguments
from app.engine.vllm.environment import prepare_cpu_environment, prepare_environment
from app.engine.vllm.loras import FIRST_ID
from app.engine.vllm.soft_prompts import SoftPrompts
from app.settings import Settings
from tests.server import architectures

SHORT, LONG = [5, 9, 33, 77, 120, 4], [3 + i * 37 % 500 for i in range(150)]
SEEDED = {"temperature": 1.0, "seed": 7}
# By name: the prompt, its adapters, and the parameters of its sampling.
REQUESTS: dict[str, tuple[list[int], str, dict[str, Any]]] = {
    "greedy": (SHORT, "", {}),
    "seeded": (SHORT, "", SEEDED),
    "three": (SHORT, "", SEEDED | {"n": 3}),
    "penalties": (SHORT, "", {"repetition_penalty": 1.3, "frequency_penalty": 0.5}),
    "logprobs": (SHORT, "", {"logprobs": 3}),
    "adapters": (SHORT, "lora soft prompt", {}),
    "lora": (LONG, "lora", SEEDED),
    "soft prompt": (LONG, "soft prompt", {}),
    "long": (LONG, "", {}),
    "long and seeded": (LONG, "", SEEDED),
}
# Several steps for a long prompt, so that a pause can come between them.
ARGUMENTS = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_loras": 1, "block_size": 32}
ENGINES: dict[str, dict[str, Any]] = {
    "as on a CPU": {},
    "as on a GPU": {"async_scheduling": True},
    "without a prefix cache": {"enable_prefix_caching": False},
}
NUM_TOKENS = 16


class Engine:
    """vLLM's engine, with its core in this process."""

    def __init__(self, folder: Path, settings: Settings, changes: dict[str, Any]) -> None:
        import torch
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        arguments = engine_arguments(folder / "model", settings, this_device())
        arguments |= {"distributed_executor_backend": "uni"} | ARGUMENTS | changes
        del arguments["max_logprobs"], arguments["shutdown_timeout"]
        config = EngineArgs(**arguments).create_engine_config()
        # On a CPU vLLM turns it off, whatever is asked for.
        config.scheduler_config.async_scheduling = changes.get("async_scheduling", False)
        self._vllm: Any = LLMEngine.from_vllm_config(config)
        self.core = self._vllm.engine_core.engine_core
        # What one in a process of its own has.
        self.core.output_queue = SimpleQueue()
        self._soft_prompts = SoftPrompts(torch.float32)
        self._soft_prompts.load(AdapterFiles("0", "soft_prompt", folder / "soft-prompt"))
        self._lora = str(folder / "lora")
        self.made: defaultdict[str, list[Any]] = defaultdict(list)

    def add_requests(self) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        for name, (token_ids, adapters, sampling) in REQUESTS.items():
            params = SamplingParams(
                **{"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True} | sampling,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            self._vllm.add_request(
                name,
                self._soft_prompts.input(token_ids, "0")
                if "soft prompt" in adapters
                else tokens_input(token_ids),
                params,
                lora_request=LoRARequest("lora", FIRST_ID, self._lora)
                if "lora" in adapters
                else None,
            )

    def step(self) -> list[str]:
        """One step; vLLM's names for the unfinished requests that have made a token in it."""
        outputs = self._vllm.step()
        for output in outputs:
            for completion in output.outputs:
                made = self.made[f"{output.request_id} {completion.index}"]
                made += completion.token_ids
                made += chain.from_iterable(map(numbers, completion.logprobs or ()))
        names = self._vllm.output_processor.external_req_ids
        return [name for output in outputs for name in names.get(output.request_id, ())]

    def step_until_idle(self) -> None:
        while self.core.scheduler.has_requests() or self.core.batch_queue:
            self.step()

    @property
    def unfinished(self) -> list[str]:
        return list(self._vllm.output_processor.request_states)

    def pause(self, names: list[str]) -> None:
        self.core.softserve_pause(names)

    def resume(self, names: list[str]) -> None:
        self.core.softserve_resume(names)

    def assert_idle(self) -> None:
        scheduler = self.core.scheduler
        assert not self.core.batch_queue
        assert not scheduler.has_requests()
        assert scheduler.get_request_counts() == (0, 0)
        assert scheduler.get_kv_cache_usage() == 0.0


def numbers(position: dict[int, Any]) -> list[float]:
    return [number for token, entry in position.items() for number in (token, entry.logprob)]


def never(engine: Engine) -> None:
    engine.step_until_idle()


def after_every_token(engine: Engine) -> None:
    """Each request as soon as it makes one, until nothing else can go on."""
    while names := engine.unfinished:
        while engine.core.scheduler.has_requests() or engine.core.batch_queue:
            engine.pause(engine.step())
        engine.assert_idle()
        engine.resume(names)


def after_every_token_for_no_time(engine: Engine) -> None:
    while engine.unfinished:
        names = engine.step()
        engine.pause(names)
        engine.resume(names)


def some_at_random(engine: Engine) -> None:
    """Within prompts too. Not for ever: what is not in the prefix cache is computed once more."""
    chance = random.Random(0)  # noqa: S311 (it chooses requests)
    for _ in range(100):
        names = engine.unfinished
        engine.pause(chance.sample(names, chance.randint(0, len(names))))
        for _ in range(chance.randint(0, 3)):
            engine.step()
        engine.resume(chance.sample(names, chance.randint(0, len(names))))
        engine.step()
    engine.resume(engine.unfinished)
    engine.step_until_idle()


PLANS: tuple[Callable[[Engine], None], ...] = (
    never,
    after_every_token,
    after_every_token_for_no_time,
    some_at_random,
)


def main(folder: Path) -> None:
    settings = Settings(cache_dir=folder / "cache", kv_cache_gib=0.1, context_window=256)
    settings = settings.model_copy(update={"model": str(folder / "model"), "max_lora_rank": 8})
    prepare_environment(settings)
    prepare_cpu_environment(eager=True)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    architectures.register_made_classes(["llama"])
    architectures.by_transformers("llama", "fp32", folder)
    for name, changes in ENGINES.items():
        print(json.dumps([name, run(Engine(folder, settings, changes))]), flush=True)  # noqa: T201


def run(engine: Engine) -> dict[str, Any]:
    made = {}
    for plan in PLANS:
        engine.made.clear()
        engine.add_requests()
        plan(engine)
        engine.step_until_idle()
        engine.assert_idle()
        made[plan.__name__] = dict(engine.made)
        engine.core.scheduler.reset_prefix_cache()
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]))
