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
    renames = renames_of(manager.model)
    return [name for name in names if EXPERTS in name or engine_name(name, renames) in adapted]


def renames_of(model: Any) -> Any:
    """What of a model's modules vLLM calls otherwise than PEFT, None if nothing."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()


def engine_name(name: str, renames: Any) -> str:
    """What vLLM calls a module when it loads an adapter."""
    peft_name = f"{PREFIX}{name.removeprefix(PREFIX)}.lora_A.weight"
    module: str = parse_fine_tuned_lora_name(peft_name, renames)[0]
    return module
