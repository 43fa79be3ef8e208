"""A soft prompt: rows that stand before a prompt's own embeddings."""

from typing import Any

from app.adapters.archive import shown
from app.adapters.validation.checked import Checked
from app.adapters.validation.config import SoftPromptConfig, wrong_field
from app.adapters.validation.names import Tensors
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture
from app.errors import AdapterRejected
from softserve.schema.server import Limits

TENSOR = "prompt_embeddings"


def check_soft_prompt(
    config: SoftPromptConfig, tensors: Tensors, architecture: Architecture, limits: Limits
) -> Checked:
    """Check a soft prompt and its one tensor. Raises AdapterRejected."""
    rows = read_rows(config, tensors, architecture, limits)
    num_virtual_tokens = config.num_virtual_tokens
    facts = {"kind": "soft_prompt", "num_virtual_tokens": num_virtual_tokens}
    if len(rows) == num_virtual_tokens:
        return Checked(facts)
    # PEFT generates with the encoder's alone.
    return Checked(facts, weights={TENSOR: rows[:num_virtual_tokens].contiguous()})


def read_rows(
    config: SoftPromptConfig,
    tensors: Tensors,
    architecture: Architecture,
    limits: Limits,
    others: tuple[str, ...] = (),
) -> Any:
    """The rows of a soft prompt, which has these other tensors too. Raises AdapterRejected."""
    if architecture.no_soft_prompts is not None:
        raise AdapterRejected(f"no soft prompt can be added: {architecture.no_soft_prompts}")
    if config.num_virtual_tokens > limits.max_virtual_tokens:
        raise AdapterRejected(
            f"the soft prompt has {shown(config.num_virtual_tokens)} virtual tokens and the limit "
            f"is {limits.max_virtual_tokens}: train with fewer, or start the server with a higher "
            "--max-virtual-tokens"
        )
    hidden_size = architecture.hidden_size
    if config.token_dim not in (None, hidden_size):
        expected = f"{hidden_size}, the base model's hidden size"
        raise wrong_field("token_dim", config.token_dim, expected)
    _check_names(tensors, (TENSOR, *others))
    # PEFT's default is rows for all stacks that there are.
    stacks = config.num_transformer_submodules or (2 if architecture.has_encoder else 1)
    shape = (config.num_virtual_tokens * stacks, hidden_size)
    named = "num_virtual_tokens" if stacks == 1 else f"{stacks} * num_virtual_tokens"
    return read_tensor(tensors, TENSOR, shape, f"({named}, hidden_size)")


def _check_names(tensors: Tensors, wanted: tuple[str, ...]) -> None:
    for name in tensors.names:
        if name not in wanted:
            raise AdapterRejected(
                f"tensor {shown(name)} is not of a soft prompt, which has {' and '.join(wanted)} "
                "alone: save it with PEFT's save_pretrained and save_embedding_layers=False"
            )
    for name in wanted:
        if name not in tensors.names:
            raise AdapterRejected(f"it has no tensor {name}: save it with PEFT's save_pretrained")
