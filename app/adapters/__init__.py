"""Adapters: checked before the engine sees them, kept as immutable versions, swapped while live."""
