"""The order of a module's output rows, where the engine has another than PEFT.

BLOOM and Falcon keep queries, keys and values in one module, and there side by side for each head;
vLLM puts all queries first, then all keys, then all values. It does so to the weights that it
loads, and not to what a LoRA has for the same outputs: the rows of its B, and the magnitudes that
app/engine/plugin/dora.py reads.
"""

from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager

from app.engine.vllm.loras import FIRST_ID

# By the name of the class: its modules whose rows go by key-value heads, each with its queries.
_BY_HEADS = {"BloomForCausalLM": "query_key_value", "FalconForCausalLM": "query_key_value"}

_add_adapter = LoRAModelManager._add_adapter  # noqa: SLF001


def register() -> None:
    """Have vLLM put the rows of each adapter in order that a worker has read."""
    LoRAModelManager._add_adapter = _add_in_order  # noqa: SLF001


def _add_in_order(manager: LoRAModelManager, lora: LoRAModel) -> None:
    # Those that vLLM warms up with are zeros, and of one worker's part of the rows.
    if lora.id >= FIRST_ID:
        for name, weights in lora.loras.items():
            weights.lora_b = in_engine_order(manager, name, weights.lora_b)
        for name, magnitude in lora.magnitudes.items():
            lora.magnitudes[name] = in_engine_order(manager, name, magnitude)
    _add_adapter(manager, lora)


def in_engine_order(manager: Any, module: str, rows: torch.Tensor) -> torch.Tensor:
    """A module's rows, (out_features, ...) as PEFT has them, in the order of the engine's layer.

    `manager` is vLLM's manager of LoRAs, and `module` the name that it has for the module.
    """
    layer = manager.modules.get(module)
    if layer is None or _BY_HEADS.get(type(manager.model).__name__) != module.rpartition(".")[2]:
        return rows
    shape = layer.base_layer
    return _queries_first(rows, shape.total_num_kv_heads, shape.head_size)


def _queries_first(rows: torch.Tensor, num_kv_heads: int, head_size: int) -> torch.Tensor:
    """Rows that go by key-value heads (queries, key, value of each): all queries, keys, values."""
    heads = rows.unflatten(0, (num_kv_heads, -1, head_size))
    parts = heads[:, :-2], heads[:, -2:-1], heads[:, -1:]
    return torch.cat([part.flatten(0, 2) for part in parts])
