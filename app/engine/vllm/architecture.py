"""What an adapter has to fit: the modules of the model by PEFT's names, which are transformers'."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.engine.protocol import Architecture, ModuleShape
from app.engine.vllm.environment import loads_plugin
from app.settings import Settings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel
    from vllm.config import ModelConfig, VllmConfig

# The types of models whose fused weights have their parts one below the other, by the code of
# transformers (its models/phi3/modeling_phi3.py). CodeGen's and MiniMax's qkv_proj have not.
PLAINLY_FUSED = {"phi3"}
NO_PLUGIN = "VLLM_PLUGINS leaves softserve out: add it, or unset the variable"


def describe_architecture(
    names: Iterable[str], config: "VllmConfig", settings: Settings
) -> Architecture:
    """The architecture of the model that vLLM runs with this config."""
    model = without_weights(config.model_config.hf_config)
    return Architecture(
        names=frozenset(names),
        hidden_size=config.model_config.get_inputs_embeds_size(),
        modules=modules_of(model),
        no_loras=_why_no_loras(config, settings),
        no_soft_prompts=_why_no_soft_prompts(config.model_config, settings),
        folder=Path(config.model_config.model),
        tied=tied_in(model),
        fused=fused_in(model),
        has_encoder=config.model_config.is_encoder_decoder,
    )


def without_weights(config: Any) -> "PreTrainedModel":
    """The model of a transformers config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = (
        AutoModelForSeq2SeqLM
        if getattr(config, "is_encoder_decoder", False)
        else AutoModelForCausalLM
    )
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config)
    return model


def modules_of(model: "PreTrainedModel") -> dict[str, ModuleShape]:
    """The modules that a LoRA can target, by name."""
    shapes = ((name, _shape(module)) for name, module in model.named_modules())
    return {name: shape for name, shape in shapes if shape is not None}


def tied_in(model: "PreTrainedModel") -> dict[str, str]:
    """The head that has the weights of the embedding, with it; nothing where none has."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        return {}
    names = {module: name for name, module in model.named_modules()}
    return {names[head]: names[embedding]}


def fused_in(model: "PreTrainedModel") -> dict[str, dict[str, int]]:
    """The fused modules whose rows are in a known order: of each, its parts' numbers of rows."""
    if model.config.model_type not in PLAINLY_FUSED:
        return {}
    fused = {}
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if last == "qkv_proj":
            queries = model.get_submodule(f"{parent}.o_proj").in_features
            keys = (module.out_features - queries) // 2
            fused[name] = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        elif last == "gate_up_proj":
            half = module.out_features // 2
            fused[name] = {"gate_proj": half, "up_proj": half}
    return fused


def _shape(module: "nn.Module") -> ModuleShape | None:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return ModuleShape("linear", module.in_features, module.out_features)
    if isinstance(module, Conv1D):
        return ModuleShape("linear", module.nx, module.nf)
    if isinstance(module, nn.Embedding):
        return ModuleShape("embedding", module.num_embeddings, module.embedding_dim)
    return None


def why_vllm_runs_no_loras(config: "ModelConfig") -> str | None:
    """The reason that lies in the model, None where vLLM runs LoRAs on it."""
    from vllm.model_executor.model_loader.utils import get_model_cls
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.platforms import current_platform

    if not supports_lora(get_model_cls(config)):
        return f"vLLM runs no LoRA on {config.architecture}"
    # Its LoRA layer of experts is in Triton, and dies at the first request, adapter or not.
    if config.get_num_experts() > 1 and current_platform.is_cpu():
        return f"vLLM runs no LoRA on a mixture of experts ({config.architecture}) on a CPU"
    return None


def _why_no_loras(config: "VllmConfig", settings: Settings) -> str | None:
    if config.lora_config is not None:
        return None
    if settings.max_loras == 0:
        return "this server runs without LoRAs: start it with --max-loras above 0"
    if not loads_plugin():
        return NO_PLUGIN
    return why_vllm_runs_no_loras(config.model_config)


def _why_no_soft_prompts(config: "ModelConfig", settings: Settings) -> str | None:
    from vllm.model_executor.model_loader.utils import get_model_cls

    from app.engine.plugin import text_models

    if settings.max_virtual_tokens == 0:
        return "this server runs without soft prompts: start it with --max-virtual-tokens above 0"
    if not loads_plugin():
        return NO_PLUGIN
    if config.is_encoder_decoder:
        return None
    if get_model_cls(config).__module__ != text_models.__name__:
        return f"vLLM's {config.architecture} takes no embeddings in place of tokens"
    if not config.supports_multimodal_inputs:
        return f"the embeddings of {config.model} are not as wide as its hidden states"
    return None
