"""Types whose change to a weight is of low rank: each is served as the LoRA that it is equal to.

One module a type has its configuration, which knows the tensors that PEFT saves of it, and the
algebra. Whatever is not exact is refused.
"""

from app.adapters.archive import shown
from app.adapters.validation.checked import Checked, made_of
from app.adapters.validation.conversion.base import ConvertedConfig
from app.adapters.validation.fused import as_trained, in_base_modules
from app.adapters.validation.low_rank import LowRanks, check_loras_run
from app.adapters.validation.names import Tensors
from app.adapters.validation.targets import check_targets, untrained_modules
from app.engine.protocol import Architecture
from app.errors import AdapterRejected
from softserve.schema.server import Limits


def convert(
    config: ConvertedConfig, tensors: Tensors, architecture: Architecture, limits: Limits
) -> Checked:
    """The LoRA that an adapter of another type is equal to.

    Raises:
        AdapterRejected: PEFT would not load it, or it is not of low rank.
    """
    check_loras_run(architecture)
    trained_on = as_trained(tensors.names, architecture)
    trained = config.low_ranks(tensors, trained_on, limits)
    _check(trained, config.title)
    low_ranks, form_notes = in_base_modules(trained, architecture, limits)
    rank = max(low_rank.rank for low_rank in low_ranks.values())
    notes = (
        f"{config.title}: served as the LoRA of rank {rank} that it is equal to",
        *form_notes,
        *check_targets(config, trained, trained_on),
        *untrained_modules(config),
    )
    return made_of(low_ranks, notes, architecture)


def _check(low_ranks: LowRanks, title: str) -> None:
    if not low_ranks:
        raise AdapterRejected(f"the {title} has rank 0 in every module: train it with a higher one")
    for module, low_rank in low_ranks.items():
        if not (low_rank.a.isfinite().all() and low_rank.b.isfinite().all()):
            raise AdapterRejected(
                f"module {shown(module)} of the {title} is infinite once its tensors are "
                "multiplied: train with a lower learning rate or a lower alpha"
            )
