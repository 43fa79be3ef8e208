"""softserve: one base model on vLLM; a LoRA adapter, a soft prompt, or both, per request."""

from importlib.metadata import version

__version__ = version("softserve")
