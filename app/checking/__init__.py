"""Checking an adapter without a server: what admission says of it, and what PEFT makes of it."""
