"""PEFT's types of adapters, by the name that their configuration has."""

from collections.abc import Mapping
from pathlib import Path

from app.adapters.validation.config import (
    AdapterConfig,
    LoRAConfig,
    SoftPromptConfig,
    TrainedTokensConfig,
    read_json,
    wrong_field,
)
from app.adapters.validation.conversion.adalora import AdaLoRAConfig
from app.adapters.validation.conversion.delora import DeLoRAConfig
from app.adapters.validation.conversion.gralora import GraLoRAConfig
from app.adapters.validation.conversion.loha import LoHaConfig
from app.adapters.validation.conversion.lokr import LoKrConfig
from app.adapters.validation.conversion.miss import BoneConfig, MiSSConfig
from app.adapters.validation.conversion.vblora import VBLoRAConfig
from app.adapters.validation.conversion.vera import PVeRAConfig, VeRAConfig
from app.adapters.validation.cpt import CPTConfig
from app.adapters.validation.multitask import MultitaskConfig
from app.errors import AdapterRejected

PEFT_TYPES: Mapping[str, type[AdapterConfig]] = {
    "LORA": LoRAConfig,
    "ADALORA": AdaLoRAConfig,
    "MISS": MiSSConfig,
    "BONE": BoneConfig,
    "VERA": VeRAConfig,
    "LOHA": LoHaConfig,
    "LOKR": LoKrConfig,
    "VBLORA": VBLoRAConfig,
    "DELORA": DeLoRAConfig,
    "GRALORA": GraLoRAConfig,
    "PVERA": PVeRAConfig,
    "TRAINABLE_TOKENS": TrainedTokensConfig,
    "PROMPT_TUNING": SoftPromptConfig,
    "P_TUNING": SoftPromptConfig,
    "MULTITASK_PROMPT_TUNING": MultitaskConfig,
    "CPT": CPTConfig,
}


def read_config(file: Path) -> AdapterConfig:
    """The configuration of an adapter, by itself: nothing is known of the base model here.

    Raises:
        AdapterRejected: it is not what PEFT writes of a type that can be served.
    """
    fields = read_json(file)
    peft_type = fields.get("peft_type")
    if peft_type == "PREFIX_TUNING":
        raise AdapterRejected(
            "prefix tuning needs keys and values for every layer put into the KV cache, which vLLM "
            "has no place for: train with PROMPT_TUNING, P_TUNING or LORA instead"
        )
    if not isinstance(peft_type, str) or peft_type not in PEFT_TYPES:
        *most, last = PEFT_TYPES
        raise wrong_field("peft_type", peft_type, f"{', '.join(most)} or {last}")
    return PEFT_TYPES[peft_type].model_validate(fields)
