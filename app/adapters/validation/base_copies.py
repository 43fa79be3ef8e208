"""Copies of the base model's own weights, which PEFT saves beside an adapter by default.

A copy that equals the base model's is left out of what is served. One that does not would change
the base model, which all adapters share.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.adapters.archive import shown
from app.adapters.validation.names import Tensors, module_of
from app.engine.protocol import Architecture
from app.errors import AdapterRejected

COPY = re.compile(
    r"(?P<module>.+?)(?:\.token_adapter)?(?:\.base_layer)?\.(?P<parameter>weight|bias)"
)
# Not those of 8 bits, which have scales beside them.
FLOATING_POINT = ("F64", "F32", "F16", "BF16")
SAVE_WITHOUT = "save the adapter with save_embedding_layers=False"


def without_base_copies(
    tensors: Tensors, architecture: Architecture
) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors without copies of the base model's weights, and the names of those.

    Raises:
        AdapterRejected: one of them is not what the base model has.
    """
    copied = {name: _copied_parameter(name, architecture) for name in tensors.names}
    copies = {name: found for name, found in copied.items() if found is not None}
    for name, (module, parameter) in copies.items():
        _check_copy(tensors, name, module, parameter, architecture)
    return tensors.without(copies), tuple(copies)


def notes_on_copies(copies: tuple[str, ...]) -> Iterator[str]:
    if copies:
        yield (
            f"{' and '.join(map(shown, copies[:2]))}: left out, as a copy that equals the base "
            "model's own weights"
        )


def _copied_parameter(name: str, architecture: Architecture) -> tuple[str, str] | None:
    match = COPY.fullmatch(name)
    module = None if match is None else module_of(match["module"], architecture)
    return None if match is None or module is None else (module, match["parameter"])


def _check_copy(
    tensors: Tensors, name: str, module: str, parameter: str, architecture: Architecture
) -> None:
    what = f"tensor {shown(name)} is a copy of the base model's own weights"
    with base_tensor(module, parameter, architecture) as base:
        if base is None or not base.is_floating_point:
            raise AdapterRejected(
                f"{what}, and what this server's base model has there cannot be read to compare "
                f"it: {SAVE_WITHOUT}"
            )
        copied = tensors.get_slice(name)
        if tuple(copied.get_shape()) != base.shape:
            raise AdapterRejected(
                f"{what} with the shape {shown(tuple(copied.get_shape()))}, and the base model's "
                f"has {shown(base.shape)}: train without resizing the embeddings"
            )
        if not _are_equal(tensors.get_tensor(name), base.get_tensor()):
            raise AdapterRejected(
                f"{what} and differs from them, but all adapters share the base model: train the "
                f"LoRA alone, or, if the weights were not trained, {SAVE_WITHOUT}"
            )


def _are_equal(copied: Any, base: Any) -> bool:
    """In either type: a model is often trained in another one than it is stored in."""
    if not copied.is_floating_point():
        return False
    return bool((copied == base.to(copied.dtype)).all() or (copied.to(base.dtype) == base).all())


class BaseTensor:
    """What is known of it before it is read."""

    def __init__(self, weights: Any, name: str) -> None:
        described = weights.get_slice(name)
        self._weights = weights
        self._name = name
        self.shape = tuple(described.get_shape())
        self.is_floating_point = described.get_dtype() in FLOATING_POINT

    def get_tensor(self) -> Any:
        return self._weights.get_tensor(self._name)

    def get_rows(self, numbers: Sequence[int]) -> Any:
        """Of a large tensor a few rows, without the others."""
        described = self._weights.get_slice(self._name)
        rows = described[:0].new_empty(len(numbers), *self.shape[1:])
        for row, number in enumerate(numbers):
            rows[row] = described[number]
        return rows


@contextmanager
def base_tensor(
    module: str, parameter: str, architecture: Architecture
) -> Iterator[BaseTensor | None]:
    """What the base model's folder has of a module; a tied head has its embeddings' weights."""
    from safetensors import safe_open

    for candidate in (module, *_tied_to(module, architecture)):
        for file in _weight_files(architecture.folder):
            with safe_open(file, framework="pt") as weights:
                names: list[str] = list(weights.keys())
                if found := _stored_name(f"{candidate}.{parameter}", names):
                    yield BaseTensor(weights, found)
                    return
    yield None


def _weight_files(folder: Path | None) -> list[Path]:
    return [] if folder is None else sorted(folder.glob("*.safetensors"))


def _stored_name(name: str, stored: list[str]) -> str | None:
    """A base model may be stored without the name that a causal LM gives to it."""
    if name in stored:
        return name
    ends = [each for each in stored if name.endswith(f".{each}") and each.count(".") > 0]
    return ends[0] if len(ends) == 1 else None


def _tied_to(module: str, architecture: Architecture) -> list[str]:
    """The embeddings of the vocabulary, if a module is a head, which may have their weights."""
    head = architecture.modules[module]
    if head.kind != "linear":
        return []
    return [
        name
        for name, shape in architecture.modules.items()
        if shape.kind == "embedding"
        and (shape.in_features, shape.out_features) == (head.out_features, head.in_features)
    ]
