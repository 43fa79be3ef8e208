"""RMSNorm and SwiGLU's activation, each one compiled operator, against FP64."""

import pytest
import torch
from torch.nn.functional import silu

from tests.unit.engine.native import compile_and_load, needs_compiler

pytestmark = needs_compiler

# Half of the last digit, and a little more: the result is rounded once.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
SHAPES = [(1, 1), (3, 17), (2, 31), (1, 1536), (40, 1536), (300, 1000), (0, 8)]
EPSILON = 1e-5


@pytest.fixture(scope="module", autouse=True)
def operators() -> None:
    compile_and_load()


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, torch.nan, memory_format=torch.contiguous_format)
    torch.ops.softserve.rms_norm(out, x, weight, EPSILON)
    return out


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPSILON) * weight.double()


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    out = x.new_full((len(x), x.shape[1] // 2), torch.nan)
    torch.ops.softserve.silu_and_mul(out, x)
    return out


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_silu_of_the_first_half_times_the_second(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    # Not all that lies in memory: rows have a stride.
    x = (4 * torch.randn(rows, 2 * width + 3)).to(dtype)[:, 1:-2]
    gate, up = x.double().split(width, dim=1)
    torch.testing.assert_close(
        silu_and_mul(x).double(), silu(gate) * up, rtol=TOLERANCES[dtype], atol=1e-6
    )


def test_large_numbers_stay_what_they_are() -> None:
    x = torch.tensor([[-1e4, 1e4, 0.0, 2.0, 3.0, 5.0]])
    assert silu_and_mul(x).tolist() == [[0.0, 3e4, 0.0]]
    assert silu_and_mul(x.bfloat16()).tolist() == [[0.0, 29952.0, 0.0]]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_a_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x, weight = (4 * torch.randn(rows, width + 3)).to(dtype)[:, 1:-2], torch.randn(width).to(dtype)
    torch.testing.assert_close(
        rms_norm(x, weight).double(), exact_norm(x, weight), rtol=TOLERANCES[dtype], atol=1e-6
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_a_norm_of_a_sum(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x, residual = (torch.randn(rows, width).to(dtype) for _ in range(2))
    weight = torch.randn(width).to(dtype)
    total = x + residual
    torch.ops.softserve.add_rms_norm(x, residual, weight, EPSILON)
    assert torch.equal(residual, total)
    assert torch.equal(x, rms_norm(total, weight))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_row_is_the_same_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(300, 2 * 577).to(dtype), torch.randn(2 * 577).to(dtype)
    assert torch.equal(silu_and_mul(x), torch.cat([silu_and_mul(row) for row in x.split(1)]))
    assert torch.equal(
        rms_norm(x, weight), torch.cat([rms_norm(row, weight) for row in x.split(1)])
    )


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (torch.zeros(2, 7), torch.zeros(2, 3)),
        (torch.zeros(2, 6), torch.zeros(1, 3)),
        (torch.zeros(2, 6, dtype=torch.bfloat16), torch.zeros(2, 3)),
        (torch.zeros(6, 2).T, torch.zeros(2, 3)),
    ],
)
def test_activations_that_do_not_fit_are_refused(x: torch.Tensor, out: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"(x|out) (is|and)"):
        torch.ops.softserve.silu_and_mul(out, x)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(2, 7), torch.zeros(6)),
        (torch.zeros(2, 6), torch.zeros(6, dtype=torch.float16)),
        (torch.zeros(6, 2).T, torch.zeros(6)),
        (torch.zeros(6), torch.zeros(6)),
    ],
)
def test_a_norm_that_does_not_fit_is_refused(x: torch.Tensor, weight: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"x is|weights"):
        torch.ops.softserve.rms_norm(torch.zeros(x.shape), x, weight, EPSILON)
    with pytest.raises(RuntimeError, match=r"x is|weights"):
        torch.ops.softserve.add_rms_norm(x, torch.zeros(x.shape), weight, EPSILON)
