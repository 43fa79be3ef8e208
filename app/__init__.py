"""The server: one base model on vLLM; a LoRA adapter, a soft prompt, or both, per request."""
