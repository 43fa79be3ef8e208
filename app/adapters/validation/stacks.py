"""Whether an adapter was trained on a model with as many stacks as the base model has.

PEFT's task type says so. A soft prompt of an encoder-decoder model has rows for both stacks, of
which PEFT uses the encoder's, the first.
"""

from app.adapters.validation.config import (
    AdapterConfig,
    SoftPromptConfig,
    TrainedTokensConfig,
    wrong_field,
)
from app.adapters.validation.cpt import CPTConfig
from app.adapters.validation.multitask import MultitaskConfig
from app.engine.protocol import Architecture
from app.errors import AdapterRejected

DECODER_ONLY, ENCODER_DECODER = "CAUSAL_LM", "SEQ_2_SEQ_LM"
# PEFT puts rows before the decoder's input in their training, and none where it generates; an
# embedding, which stands in both stacks, has no room for a LoRA.
NOT_WITH_ENCODERS = (MultitaskConfig, CPTConfig, TrainedTokensConfig)


def check_stacks(config: AdapterConfig, architecture: Architecture) -> None:
    """Raises `AdapterRejected`."""
    if not architecture.has_encoder:
        if config.task_type == ENCODER_DECODER:
            why = f"{DECODER_ONLY}, because the base model has no encoder"
            raise wrong_field("task_type", config.task_type, why)
        if isinstance(config, SoftPromptConfig) and config.num_transformer_submodules == 2:
            raise wrong_field("num_transformer_submodules", 2, "1, as of a causal LM")
        return
    if config.task_type == DECODER_ONLY:
        why = f"{ENCODER_DECODER}, because the base model is an encoder-decoder model"
        raise wrong_field("task_type", config.task_type, why)
    if isinstance(config, NOT_WITH_ENCODERS):
        raise AdapterRejected(
            "this type of adapter is not served on an encoder-decoder model: train with LORA or "
            "PROMPT_TUNING"
        )
