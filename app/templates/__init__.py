"""Prompt templates: zero, one and few shots, chosen, and fitted to the context window."""
