"""One model in two forms: a Llama, and a Phi-3 of the same numbers, with q, k and v in one."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": AutoConfig.for_model("llama", **SHAPE),
    "phi3": AutoConfig.for_model("phi3", original_max_position_embeddings=256, **SHAPE),
}
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def make_models() -> dict[str, Any]:
    """Both, by model_type, in FP32."""
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(CONFIGS["llama"], dtype=torch.float32).eval()
    for weights in llama.parameters():
        if weights.dim() == 2:
            torch.nn.init.normal_(weights, std=0.2)
    phi3 = AutoModelForCausalLM.from_config(CONFIGS["phi3"], dtype=torch.float32).eval()
    numbers = llama.state_dict()
    for layer in range(SHAPE["num_hidden_layers"]):
        for fused, parts in FUSED.items():
            prefix = f"model.layers.{layer}."
            numbers[f"{prefix}{fused}.weight"] = torch.cat(
                [numbers.pop(f"{prefix}{part}.weight") for part in parts]
            )
    phi3.load_state_dict(numbers)
    return {"llama": llama, "phi3": phi3}
