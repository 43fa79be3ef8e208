"""Trained tokens: rows of the embedding that stand in place of the base model's own.

By PEFT's code (its tuners/trainable_tokens/layer.py, and what utils/other.py ties to it): where the
head has the embedding's weights, the rows are the head's too, unless it has others of its own. k
new rows are a change of rank k: one half says which rows they are, and the other what is added.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.adapters.archive import shown
from app.adapters.validation.base_copies import base_tensor
from app.adapters.validation.checked import Checked, made_of
from app.adapters.validation.config import LoRAConfig, TrainedTokensConfig
from app.adapters.validation.low_rank import (
    LowRank,
    LowRanks,
    check_loras_run,
    check_size,
    module_shape,
)
from app.adapters.validation.names import PREFIX, Tensors
from app.adapters.validation.targets import check_targets, untrained_modules
from app.adapters.validation.tensors import read_tensor
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected
from softserve.schema.adapters import WEIGHTS_FILE
from softserve.schema.server import Limits

PART_OF_A_LORA = ".token_adapter.trainable_tokens_delta"
PART = ".trainable_tokens_delta"
TRAIN_WITHOUT = "train a LoRA without trained tokens"

# The ids that the configuration has for a module, None if it has none.
IdsOf = Callable[[str], Sequence[int] | None]


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """`modules` are those that `tensors` are for; a head may have its embedding's rows besides."""

    tensors: tuple[str, ...]
    modules: tuple[str, ...]
    token_ids: tuple[int, ...]
    low_ranks: LowRanks

    @property
    def notes(self) -> Iterator[str]:
        if self.low_ranks:
            yield (
                f"{len(self.token_ids):,} tokens are trained: served as a LoRA of "
                f"{' and '.join(map(shown, self.low_ranks))}, which changes their rows alone"
            )


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is added to the rows of some tokens: `delta` has the shape (tokens, width)."""

    token_ids: tuple[int, ...]
    delta: Any

    def as_low_rank(self, shape: ModuleShape) -> LowRank:
        num_rows = len(self.token_ids)
        which = self.delta.new_zeros(num_rows, _num_tokens(shape))
        which[range(num_rows), list(self.token_ids)] = 1.0
        if shape.kind == "embedding":
            return LowRank(which, self.delta.T)
        return LowRank(self.delta, which.T)


def check_trained_tokens(
    config: TrainedTokensConfig, tensors: Tensors, architecture: Architecture, limits: Limits
) -> Checked:
    """PEFT's TRAINABLE_TOKENS, which has nothing else.

    Raises:
        AdapterRejected: PEFT would not load it, or not as it would be served.
    """
    check_loras_run(architecture)
    trained = _read(tensors, PART, lambda module: config.token_indices, architecture, limits)
    for name in tensors.without(trained.tensors).names:
        raise AdapterRejected(
            f"tensor {shown(name)} is not of trained tokens, whose tensors are called "
            f"{PREFIX}MODULE{PART}: save it with PEFT's save_pretrained"
        )
    if not trained.low_ranks:
        raise _no_tensor("token_indices")
    notes = (
        *trained.notes,
        *check_targets(config, trained.modules, architecture),
        *untrained_modules(config),
    )
    return made_of(trained.low_ranks, notes, architecture, trained.token_ids)


def tokens_beside_a_lora(
    config: LoRAConfig, tensors: Tensors, architecture: Architecture, limits: Limits
) -> TrainedTokens:
    """What its `trainable_token_indices` are of. Raises AdapterRejected."""
    indices = config.trainable_token_indices

    def ids_of(module: str) -> Sequence[int] | None:
        # PEFT goes by the end of a name, and takes the first key.
        if isinstance(indices, dict):
            return next((ids for key, ids in indices.items() if module.endswith(key)), None)
        return indices if architecture.modules[module].kind == "embedding" else None

    trained = _read(tensors, PART_OF_A_LORA, ids_of, architecture, limits)
    ends = indices if isinstance(indices, dict) else [""] if indices else []
    for end in ends:
        if not any(module.endswith(end) for module in (*trained.modules, *trained.low_ranks)):
            raise _no_tensor("trainable_token_indices", end)
    return trained


def _read(
    tensors: Tensors, part: str, ids_of: IdsOf, architecture: Architecture, limits: Limits
) -> TrainedTokens:
    names = {
        name.removeprefix(PREFIX).removesuffix(part): name
        for name in tensors.names
        if name.endswith(part)
    }
    rows = {
        module: _rows(tensors, name, module, ids_of, architecture, limits)
        for module, name in names.items()
    }
    tied = {
        head: rows[embedding]
        for head, embedding in architecture.tied.items()
        if embedding in rows and _is_tied(head, embedding, rows, ids_of)
    }
    token_ids = {token_id for each in rows.values() for token_id in each.token_ids}
    changed = {module: each for module, each in (rows | tied).items() if each.token_ids}
    ranks = {module: len(each.token_ids) for module, each in changed.items()}
    check_size(ranks, architecture, limits, "set of trained tokens", "number of them")
    return TrainedTokens(
        tensors=tuple(names.values()),
        modules=tuple(module for module in rows if module not in tied),
        token_ids=tuple(sorted(token_ids)),
        low_ranks={
            module: each.as_low_rank(architecture.modules[module])
            for module, each in changed.items()
        },
    )


def _rows(
    tensors: Tensors,
    name: str,
    module: str,
    ids_of: IdsOf,
    architecture: Architecture,
    limits: Limits,
) -> _Rows:
    """The rows of one module, which is checked with all that follow it."""
    for each in (module, *(head for head, tied in architecture.tied.items() if tied == module)):
        _check_module(name, each, architecture)
    shape = architecture.modules[module]
    token_ids = ids_of(module)
    if token_ids is None and module in architecture.tied:
        # PEFT can save the embedding's rows under this name too.
        token_ids = ids_of(architecture.tied[module])
    if token_ids is None:
        raise AdapterRejected(
            f"tensor {shown(name)} is of trained tokens, and trainable_token_indices does not say "
            "which tokens they are: save the adapter again"
        )
    _check_ids(token_ids, _num_tokens(shape), limits)
    expected = (len(token_ids), _width(shape))
    rows = read_tensor(tensors, name, expected, "(tokens, width of the embedding)").float()
    delta = rows - _base_rows(module, token_ids, architecture)
    if not delta.isfinite().all():
        raise AdapterRejected(
            f"tensor {shown(name)} cannot be taken for what the base model has there, because the "
            "difference is not finite: train other tokens"
        )
    return _Rows(tuple(token_ids), delta)


def _check_module(tensor: str, module: str, architecture: Architecture) -> None:
    shape = module_shape(tensor, module, architecture)
    if _num_tokens(shape) not in _vocabularies(architecture):
        raise AdapterRejected(
            f"tensor {shown(tensor)} is of trained tokens, and module {shown(module)} has none: "
            "name the embedding in trainable_token_indices"
        )
    if module in architecture.unadapted:
        raise AdapterRejected(
            f"tensor {shown(tensor)} is of trained tokens, and the engine adds no LoRA to module "
            f"{shown(module)} in this base model: {TRAIN_WITHOUT}"
        )


def _check_ids(token_ids: Sequence[int], num_tokens: int, limits: Limits) -> None:
    if len(token_ids) > limits.max_lora_rank:
        raise AdapterRejected(
            f"{len(token_ids):,} tokens are trained, which is of rank {len(token_ids):,} as a "
            f"LoRA, and the limit is {limits.max_lora_rank}: train fewer, or start the server with "
            "a higher --max-lora-rank"
        )
    for token_id in token_ids:
        if not 0 <= token_id < num_tokens:
            raise AdapterRejected(
                f"token {shown(token_id)} is trained, and the base model's tokens go from 0 to "
                f"{num_tokens - 1:,}: train tokens that it has, without resizing the embeddings"
            )
    if len(set(token_ids)) < len(token_ids):
        raise AdapterRejected("a token is trained twice: name each once, and train again")


def _base_rows(module: str, token_ids: Sequence[int], architecture: Architecture) -> Any:
    """Those that are served: of a tied head, the embedding's."""
    shape = architecture.modules[module]
    with base_tensor(architecture.tied.get(module, module), "weight", architecture) as base:
        expected = (_num_tokens(shape), _width(shape))
        if base is None or not base.is_floating_point or base.shape != expected:
            raise AdapterRejected(
                f"tokens are trained, and what this server's base model has for {shown(module)} "
                "cannot be read to find out what is added: serve the base model from safetensors "
                f"with embeddings that are not quantized, or {TRAIN_WITHOUT}"
            )
        return base.get_rows(token_ids).float()


def _is_tied(head: str, embedding: str, rows: Mapping[str, _Rows], ids_of: IdsOf) -> bool:
    """Whether PEFT gives the embedding's rows to the head."""
    shared, own = rows[embedding], rows.get(head)
    if own is None:
        own_ids = ids_of(head)
        if own_ids is not None and tuple(own_ids) != shared.token_ids:
            raise _no_tensor("trainable_token_indices", head)
        return True
    if own.token_ids == shared.token_ids and not (own.delta == shared.delta).all():
        raise AdapterRejected(
            f"{shown(embedding)} and {shown(head)} have one weight in the base model, and the same "
            "tokens are trained to different rows of it: save the adapter again"
        )
    return own.token_ids == shared.token_ids


def _no_tensor(field: str, end: str = "") -> AdapterRejected:
    of_module = f" of {shown(end)}" if end else ""
    return AdapterRejected(
        f"{field} names tokens{of_module}, and {WEIGHTS_FILE} has no trainable_tokens_delta for "
        "them: save the adapter again"
    )


def _num_tokens(shape: ModuleShape) -> int:
    """Of an embedding or of a head."""
    return shape.in_features if shape.kind == "embedding" else shape.out_features


def _width(shape: ModuleShape) -> int:
    return shape.out_features if shape.kind == "embedding" else shape.in_features


def _vocabularies(architecture: Architecture) -> set[int]:
    shapes = architecture.modules.values()
    return {shape.in_features for shape in shapes if shape.kind == "embedding"}
