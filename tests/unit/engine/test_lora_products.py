"""The products of LoRAs on a CPU, against plain ones in FP64: compiled, and in PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from app.engine.plugin.lora_products import (
    NativeProducts,
    Products,
    Ranks,
    SortedRows,
    Stacks,
    TorchProducts,
)
from tests.unit.engine.native import compile_and_load, needs_compiler

SIZE_IN, MAX_RANK = 77, 100
SLICES = (600, 1, 33)
# By slice, that of each slot: high and low, odd, none.
RANKS = ((8, 1, 100, 0), (0, 3, 64, 0), (7, 32, 16, 0))
NUM_SLOTS = len(RANKS[0])
# By name: the slot of each row; -1 is the base model.
BATCHES = {
    "base alone": [-1, -1],
    "one row": [2],
    "each slot": [0, 1, 2, 3],
    "beside the base": [-1, 2, 0, -1, 3, 2, 1, -1],
    "a long prompt": [1] * 75,
    "a long prompt beside others": [0, *[2] * 75, 1, -1, *[0] * 9],
}
# Of the largest value. PyTorch rounds in between, the compiled products do so at the end alone.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Module:
    """A layer's A and B, and its slots' ranks."""

    lora_a: Stacks
    lora_b: Stacks
    ranks: Ranks


@pytest.fixture(scope="session")
def native() -> NativeProducts:
    compile_and_load()
    return NativeProducts()


@pytest.fixture(params=["torch", pytest.param("native", marks=needs_compiler)])
def products(request: pytest.FixtureRequest) -> Products:
    if request.param == "torch":
        return TorchProducts()
    compiled: NativeProducts = request.getfixturevalue("native")
    return compiled


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def module_of(dtype: torch.dtype) -> Module:
    generator = torch.Generator().manual_seed(1)
    lora_a = tuple(torch.zeros(NUM_SLOTS, 1, MAX_RANK, SIZE_IN, dtype=dtype) for _ in SLICES)
    # As app/engine/plugin/cpu_lora.py lays it out.
    lora_b = tuple(torch.zeros(NUM_SLOTS, 1, MAX_RANK, size, dtype=dtype).mT for size in SLICES)
    for a, b, ranks in zip(lora_a, lora_b, RANKS, strict=True):
        for slot, rank in enumerate(ranks):
            a[slot, 0, :rank] = torch.randn(rank, SIZE_IN, generator=generator)
            b[slot, 0, :, :rank] = torch.randn(b.shape[2], rank, generator=generator)
    ranks_of = Ranks(len(SLICES), NUM_SLOTS)
    ranks_of.update(tuple(range(NUM_SLOTS)), tuple(b.mT for b in lora_b))
    return Module(lora_a, lora_b, ranks_of)


def rows_of(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def expected(x: torch.Tensor, module: Module, batch: list[int], scale: float) -> torch.Tensor:
    """What is added to y, in FP64. Without A, x is its product."""
    delta = torch.zeros(len(batch), sum(b.shape[2] for b in module.lora_b), dtype=torch.float64)
    for i, (row, slot) in enumerate(zip(x.double(), batch, strict=True)):
        if slot >= 0:
            parts = [
                b[slot, 0].double() @ (a[slot, 0].double() @ row if a is not None else row)
                for a, b in zip(module.lora_a or [None], module.lora_b, strict=True)
            ]
            delta[i] = scale * torch.cat(parts)
    return delta


def test_it_finds_the_ranks() -> None:
    ranks = module_of(torch.float32).ranks
    assert tuple(map(tuple, ranks.by_slice.tolist())) == RANKS
    assert ranks.slots == {0, 1, 2}


def test_it_looks_again_at_a_slot_with_another_adapter() -> None:
    module = module_of(torch.float32)
    module.lora_b[0][2] = 0
    module.lora_b[0][2, 0, :, 4] = 1
    module.lora_b[0][0] = 0
    stacks = tuple(b.mT for b in module.lora_b)
    module.ranks.update((0, 1, 20, 3), stacks)
    # Slot 0 has the adapter that it had: it is not looked at.
    assert module.ranks.by_slice[0].tolist() == [8, 1, 5, 0]
    module.ranks.update((None, 1, 20, 3), stacks)
    assert module.ranks.by_slice[0].tolist() == [0, 1, 5, 0]


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_row_gets_its_own_adapter(
    products: Products, dtype: torch.dtype, batch: list[int]
) -> None:
    module = module_of(dtype)
    x, y = rows_of(len(batch), SIZE_IN, dtype=dtype), rows_of(len(batch), 640, dtype=dtype)
    got, rows = y.clone(), SortedRows.by(torch.tensor(batch))
    products.add(got, x, module.lora_a, module.lora_b, 0.5, rows, module.ranks)

    delta = expected(x, module, batch, 0.5)
    difference = (got[:, : sum(SLICES)].double() - y[:, : sum(SLICES)].double() - delta).abs().max()
    assert difference <= TOLERANCES[dtype] * max(float(delta.abs().max()), 1.0)
    # To the last bit: rows of the base model and of an adapter without this module, other columns.
    untouched = [slot in {-1, 3} for slot in batch]
    assert torch.equal(got[untouched], y[untouched])
    assert torch.equal(got[:, sum(SLICES) :], y[:, sum(SLICES) :])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_an_embedding_comes_multiplied_with_its_a(products: Products, dtype: torch.dtype) -> None:
    module, batch = module_of(dtype), BATCHES["beside the base"]
    alone = Ranks(1, NUM_SLOTS)
    alone.update(tuple(range(NUM_SLOTS)), (module.lora_b[0].mT,))
    embedding = Module((), module.lora_b[:1], alone)
    x, y = rows_of(len(batch), MAX_RANK, dtype=dtype), torch.zeros(len(batch), 600, dtype=dtype)
    products.add(
        y, x, (), embedding.lora_b, 1.0, SortedRows.by(torch.tensor(batch)), embedding.ranks
    )
    delta = expected(x, embedding, batch, 1.0)
    assert (y.double() - delta).abs().max() <= TOLERANCES[dtype] * delta.abs().max()


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_logits_may_be_of_a_higher_precision(native: NativeProducts, dtype: torch.dtype) -> None:
    module, batch = module_of(dtype), BATCHES["each slot"]
    x, y = rows_of(len(batch), SIZE_IN, dtype=dtype), torch.zeros(len(batch), sum(SLICES))
    rows = SortedRows.by(torch.tensor(batch))
    native.add(y, x, module.lora_a, module.lora_b, 1.0, rows, module.ranks)
    delta = expected(x, module, batch, 1.0)
    # Of types that round, nothing is left to be rounded.
    assert (y.double() - delta).abs().max() <= 1e-5 * delta.abs().max()


@needs_compiler
@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.usefixtures("threads")
def test_a_row_alone_is_the_same_as_in_a_batch(
    native: NativeProducts, dtype: torch.dtype, num_threads: int
) -> None:
    module, batch = module_of(dtype), BATCHES["a long prompt beside others"]
    x, y = rows_of(len(batch), SIZE_IN, dtype=dtype), rows_of(len(batch), 640, dtype=dtype)
    torch.set_num_threads(1)
    alone = y.clone()
    for i, slot in enumerate(batch):
        one = SortedRows.by(torch.tensor([slot]))
        if one.slots:
            row = slice(i, i + 1)
            native.add(alone[row], x[row], module.lora_a, module.lora_b, 1.0, one, module.ranks)

    torch.set_num_threads(num_threads)
    rows = SortedRows.by(torch.tensor(batch))
    native.add(y, x, module.lora_a, module.lora_b, 1.0, rows, module.ranks)
    assert torch.equal(y, alone)


@needs_compiler
def test_a_batch_of_more_rows_than_there_are_is_refused(native: NativeProducts) -> None:
    module = module_of(torch.float32)
    x, y = torch.zeros(2, SIZE_IN), torch.zeros(2, sum(SLICES))
    rows = SortedRows.by(torch.tensor([0, 0, 0]))
    with pytest.raises(RuntimeError, match="more rows than x or y"):
        native.add(y, x, module.lora_a, module.lora_b, 1.0, rows, module.ranks)
