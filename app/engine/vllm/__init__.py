"""The engine on vLLM. vLLM is imported here and in the plugin beside it only."""
