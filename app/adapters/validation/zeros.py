"""Whether a LoRA's tensors can change anything at all."""

from pathlib import Path

from app.adapters.validation.tensors import open_weights
from softserve.schema.adapters import WEIGHTS_FILE

HALVES = {"lora_A.weight": "lora_B.weight", "lora_embedding_A": "lora_embedding_B"}


def changes_nothing(folder: Path) -> bool:
    """Whether of every pair of a LoRA one half is zero, and there is nothing else. It blocks.

    Training begins so, and ends so where it has done nothing.
    """
    with open_weights(folder / WEIGHTS_FILE) as weights:
        names = set(weights.keys())
        pairs = [
            (name, name.removesuffix(a) + b)
            for name in names
            for a, b in HALVES.items()
            if name.endswith(a)
        ]
        if names != {name for pair in pairs for name in pair}:
            return False
        return all(
            # B first: that is where training begins with zeros.
            any(not weights.get_tensor(half).any() for half in reversed(pair))
            for pair in pairs
        )
