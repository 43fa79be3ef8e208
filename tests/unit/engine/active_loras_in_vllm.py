"""Runs steps through vLLM's manager of a worker's LoRAs; test_active_loras.py starts it.

It writes, of vLLM's own and of softserve's, what is kept after each step, least recently used
first, and how often the list of all was asked for.
"""

import json
import sys
from typing import Any

from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from app.engine.plugin import active_loras

NUM_SLOTS, NUM_LOADED = 2, 4
# The LoRAs of each step, in the order in which they come.
STEPS = [[1], [1, 2], [2, 1], [3], [2, 3], [4], [3], [5, 1], [1], [5, 1]]


class Manager(LRUCacheLoRAModelManager):  # type: ignore[misc]
    """One without a model: a LoRA in a slot changes nothing."""

    def __init__(self) -> None:
        self._registered_adapters = AdapterLRUCache(NUM_LOADED, self.deactivate_adapter)
        self._active_adapters = AdapterLRUCache(NUM_SLOTS, self._deactivate_adapter)
        self.lora_index_to_id = [None] * NUM_SLOTS
        self.modules: dict[str, Any] = {}
        self.num_lists = 0

    lora_slots = NUM_SLOTS
    capacity = NUM_LOADED

    def _add_adapter(self, lora: Any) -> None:
        self._registered_adapters[lora.id] = lora

    def list_adapters(self) -> dict[int, Any]:
        self.num_lists += 1
        loras: dict[int, Any] = super().list_adapters()
        return loras


class Lora:
    def __init__(self, request: LoRARequest) -> None:
        self.id = request.lora_int_id


def run() -> dict[str, Any]:
    worker = object.__new__(LRUCacheWorkerLoRAManager)
    worker._adapter_manager = manager = Manager()
    worker._load_adapter = Lora
    kept = []
    for step in STEPS:
        for lora_id in step:
            assert worker.add_adapter(LoRARequest(str(lora_id), lora_id, "/nowhere"))
        kept.append(
            {
                "loaded": list(manager._registered_adapters.order),
                "in slots": list(manager._active_adapters.order),
            }
        )
    return {"kept": kept, "lists": manager.num_lists}


def main() -> None:
    of_vllm = run()
    active_loras.register()
    sys.stdout.write(json.dumps({"vLLM": of_vllm, "softserve": run()}) + "\n")


if __name__ == "__main__":
    main()
