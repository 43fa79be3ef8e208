"""adapter_model.safetensors: its header, and its tensors one at a time.

The file starts with the length of its header in 8 bytes, the lowest first. The header is JSON and
says where in the rest of the file each tensor lies.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, TypeAdapter, ValidationError

from app.adapters.archive import shown
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

# Tens of thousands of tensors fit; the library would hold ten times as much.
MAX_HEADER_BYTES = 16 << 20
LENGTH_BYTES = 8
FLOATS = ("F32", "F16", "BF16")

NOT_SAFETENSORS = (
    f"{WEIGHTS_FILE} is not a safetensors file, or it is damaged or cut short: send it again, or "
    "save the adapter again"
)


class _Tensor(BaseModel):
    """Which bytes of the data it is: from, and up to. The metadata among the tensors has none."""

    data_offsets: tuple[int, int] = (0, 0)


_HEADER = TypeAdapter(dict[str, _Tensor])


def is_cut_short(file: Path) -> bool:
    """Whether the file is shorter than its header says, as it is while it is being copied.

    What no further byte can make right is not: that is for `open_weights` to refuse.
    """
    with file.open("rb") as opened:
        try:
            header = _read_header(opened)
            if header is None:
                return True
            tensors = _HEADER.validate_json(header)
        except (AdapterRejected, ValidationError):
            return False
        end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
        return _size_of(opened) < LENGTH_BYTES + len(header) + end


@contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """A safetensors file with at least one tensor, of which only the header has been read.

    Raises:
        AdapterRejected: it is damaged, or something else.
        AdapterTooLarge: its header is above 16 MiB.
    """
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as opened:
        if _read_header(opened) is None:
            raise AdapterRejected(NOT_SAFETENSORS)
    try:
        weights: Any = safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterRejected(NOT_SAFETENSORS) from error
    with weights:
        if not weights.keys():
            raise AdapterRejected(
                f"{WEIGHTS_FILE} has no tensors: train the adapter before saving it"
            )
        yield weights


def read_tensor(
    weights: Any,
    name: str,
    expected: tuple[int, ...],
    meaning: str,
    dtypes: Sequence[str] = FLOATS,
) -> Any:
    """A tensor of torch, of the expected shape and finite. Raises AdapterRejected."""
    described = weights.get_slice(name)
    shape, dtype = tuple(described.get_shape()), described.get_dtype()
    if shape != expected:
        raise AdapterRejected(
            f"tensor {shown(name)} has the shape {shown(shape)}; expected {shown(expected)}, which "
            f"is {meaning}: check {CONFIG_FILE} and which base model the adapter was trained on"
        )
    if dtype not in dtypes:
        *most, last = dtypes
        raise AdapterRejected(
            f"tensor {shown(name)} is {dtype}; expected {', '.join(most)} or {last}: save it as "
            "one of them"
        )
    tensor = weights.get_tensor(name)
    if not tensor.isfinite().all():
        what = "NaN" if tensor.isnan().any() else "an infinite number"
        raise AdapterRejected(
            f"tensor {shown(name)} holds {what}: training went wrong, go back to a checkpoint "
            "before that"
        )
    return tensor


def _read_header(opened: BinaryIO) -> bytes | None:
    """None where the file ends before its header does. Raises AdapterRejected if it is too long."""
    length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
    is_complete = _size_of(opened) >= LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES:
        if not is_complete:
            raise AdapterRejected(NOT_SAFETENSORS)
        raise AdapterTooLarge(
            f"{WEIGHTS_FILE} has a header of {length:,} bytes and the limit is "
            f"{MAX_HEADER_BYTES:,}: save the adapter again"
        )
    return opened.read(length) if is_complete else None


def _size_of(opened: BinaryIO) -> int:
    return os.fstat(opened.fileno()).st_size
