"""A step's LoRAs, without a copy of the list of all that are loaded for each of them.

Before every step vLLM asks of each LoRA in it whether it is loaded, and copies that list to find
out: with 64 LoRAs in a step it takes 1.2 ms where 64 are loaded, and 14 ms where 1,000 are. A LoRA
that is in a slot is loaded, and only has to count as used.
"""

from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

_add_adapter = LRUCacheWorkerLoRAManager.add_adapter


def register() -> None:
    """Have vLLM's worker look into the slots first."""
    LRUCacheWorkerLoRAManager.add_adapter = _use_adapter


def _use_adapter(worker: LRUCacheWorkerLoRAManager, request: LoRARequest) -> bool:
    manager, lora_id = worker._adapter_manager, request.lora_int_id  # noqa: SLF001
    in_slots = manager._active_adapters  # noqa: SLF001
    if request.load_inplace or lora_id not in in_slots:
        added: bool = _add_adapter(worker, request)
        return added
    in_slots.touch(lora_id)
    return manager.get_adapter(lora_id) is not None
