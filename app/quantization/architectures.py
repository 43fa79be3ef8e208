"""What `softserve quantize` knows how to walk through."""

# Their decoder layers are `model.layers`, all called alike, with `nn.Linear` inside.
ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
