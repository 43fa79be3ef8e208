"""What is known of an adapter once it is checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from app.adapters.validation.low_rank import LowRanks
from app.adapters.validation.names import names_of
from app.adapters.validation.targets import last_names
from app.engine.protocol import Architecture


@dataclass(frozen=True, slots=True)
class Checked:
    """`facts` are fields of its AdapterVersion, `notes` say in what it is served otherwise.

    `config_changes` has the fields that the served configuration has in place of the file's.
    `weights` has the tensors that are served in place of the file's; None: as they are.
    """

    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None

    def with_weights(self, more: Mapping[str, Any]) -> "Checked":
        """With these tensors beside those that are served in place of the file's."""
        return replace(self, weights={**(self.weights or {}), **more})


def lora_facts(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Of a LoRA, from the rank of every module."""
    return {
        "kind": "lora",
        "rank": max(ranks.values()),
        "target_modules": tuple(last_names(ranks)),
    }


def made_of(
    low_ranks: LowRanks,
    notes: tuple[str, ...],
    architecture: Architecture,
    trained_tokens: tuple[int, ...] = (),
) -> Checked:
    """What is served as the LoRA that adds these, whatever its files are."""
    ranks = {module: low_rank.rank for module, low_rank in low_ranks.items()}
    rank = max(ranks.values())
    weights = {}
    for module, low_rank in low_ranks.items():
        half_a, half_b = names_of(module, architecture.modules[module])
        weights[half_a], weights[half_b] = low_rank.a.contiguous(), low_rank.b.contiguous()
    changes = {
        "peft_type": "LORA",
        # The engine multiplies by lora_alpha / r, whatever the rank of a module is.
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": last_names(ranks),
        "modules_to_save": None,
        "bias": "none",
        "init_lora_weights": True,
        "trainable_token_indices": None,
    }
    facts = lora_facts(ranks) | {"trained_tokens": trained_tokens}
    return Checked(facts, notes, changes, weights)
