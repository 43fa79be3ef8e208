"""Which modules vLLM adds LoRAs to."""

from typing import Any

from vllm.lora.utils import parse_fine_tuned_lora_name

PREFIX = "base_model.model."
# What vLLM does with these depends on how an adapter has them: it is left to vLLM.
EXPERTS = ".experts"


class AdaptedModules:
    """A part of `app.engine.plugin.worker`."""

    model_runner: Any

    def softserve_adapted_modules(self, names: list[str]) -> list[str]:
        """Those of PEFT's names that mean a module with room for LoRAs."""
        return adapted_modules(self.model_runner.lora_manager._adapter_manager, names)  # noqa: SLF001


def adapted_modules(manager: Any, names: list[str]) -> list[str]:
    """Those of PEFT's names that mean a module with room for LoRAs, by vLLM's `manager` of them."""
    adapted = {
        part for name in manager.modules for part in manager.packed_modules.get(name, [name])
    }
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    renames = None if mapper is None else mapper.get_rename_mapper()
    return [name for name in names if EXPERTS in name or _engine_name(name, renames) in adapted]


def _engine_name(name: str, renames: Any) -> str:
    """What vLLM calls a module when it loads an adapter."""
    module: str = parse_fine_tuned_lora_name(f"{PREFIX}{name}.lora_A.weight", renames)[0]
    return module
