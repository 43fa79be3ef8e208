"""What runs the model. vLLM is imported in this folder only."""
