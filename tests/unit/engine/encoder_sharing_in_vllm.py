"""Steps of encoder inputs through softserve's sharing; test_encoder_sharing.py starts it.

It writes, for each step, what was encoded, what every request got, and which LoRA vLLM was told to
use for which token; and what is left of outputs when there is no more room.
"""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from app.engine.plugin.seq2seq import encoder_sharing
from app.engine.plugin.seq2seq.encoder_sharing import Encoded

# By request, in the order of the batch: its input, how long that is, and its LoRA, 0 for none.
REQUESTS = {"a": ("x", 2, 1), "b": ("y", 3, 0), "c": ("x", 2, 1), "d": ("z", 1, 2)}
# In the order in which they were scheduled.
STEPS = ["dcab", "cd", "b"]


@dataclass
class Scheduled:
    """What is asked for of vLLM's output of a scheduler."""

    scheduled_encoder_inputs: dict[str, list[int]]


class Runner:
    """What is asked for of vLLM's runner."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(is_encoder_decoder=True)
        self.lora_config = object()
        self.lora_manager = SimpleNamespace(set_active_adapters=self.map_loras)
        self.input_batch = SimpleNamespace(
            req_id_to_index={request_id: place for place, request_id in enumerate(REQUESTS)},
            request_lora_mapping=np.array([lora for _, _, lora in REQUESTS.values()]),
            lora_id_to_lora_request={1: "first", 2: "second"},
        )
        self.encoded: list[str] = []
        self.mapped: list[int] = []

    def _batch_mm_inputs_from_scheduler(self, scheduled: Scheduled) -> tuple[Any, Any, Any]:
        ids = [each for each in REQUESTS if each in scheduled.scheduled_encoder_inputs]
        return [REQUESTS[each][0] for each in ids], [None] * len(ids), [(each, 0) for each in ids]

    def map_loras(self, requests: set[str], mapping: Any) -> None:
        self.mapped = list(mapping.index_mapping)

    def encode(self, scheduled: Scheduled) -> list[torch.Tensor]:
        """vLLM's own, which maps the LoRAs of what it encodes."""
        identifiers, _, references = self._batch_mm_inputs_from_scheduler(scheduled)
        requests = [REQUESTS[request_id] for request_id, _ in references]
        self.encoded = identifiers
        self.mapped = [lora for _, length, lora in requests for _ in range(length)]
        return [torch.full((length, 1), float(ord(text))) for text, length, _ in requests]


def main() -> None:
    runner, steps = Runner(), []
    with patch.object(encoder_sharing, "_execute_encoder", Runner.encode):
        for step in STEPS:
            scheduled = Scheduled({request_id: [0] for request_id in step})
            outputs = encoder_sharing._encode_what_is_new(runner, scheduled)
            got = ["".join(chr(int(each)) for each in output[:, 0]) for output in outputs]
            steps.append({"encoded": runner.encoded, "got": got, "loras": runner.mapped})
    small = Encoded(max_tokens=5)
    for name in "abc":
        small.put(name, torch.zeros(2, 1))
    used = small.use(["b", "a", "c"])
    kept = [name for name in "abc" if name in small]
    print(json.dumps({"steps": steps, "used": len(used), "kept": kept}))  # noqa: T201


if __name__ == "__main__":
    main()
