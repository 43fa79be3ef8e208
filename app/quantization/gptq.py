"""GPTQ: the weights of a linear layer as integers, chosen by what the layer does on real inputs.

Columns are rounded one after the other, and what rounding one changes in the layer's outputs is
made good by those that are still to come (Frantar et al., "GPTQ", 2022).
"""

import torch

MAX = 127
BLOCK = 32
# Of the mean of the diagonal: it keeps the inverse of inputs that depend on each other finite.
DAMPING = 0.01


class InputStatistics:
    """The second moments of a layer's inputs: the sum of x x^T, of shape (in, in)."""

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, width)
        self._num_rows = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Inputs of shape (..., in)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self._sum += rows.T @ rows
        self._num_rows += len(rows)

    def hessian(self) -> torch.Tensor:
        """Of the layer's mean squared error, up to a factor, with damping."""
        hessian = self._sum / max(1, self._num_rows)
        diagonal = hessian.diagonal()
        diagonal += DAMPING * diagonal.mean() + torch.finfo(torch.float32).tiny
        return hessian


def quantize(weight: torch.Tensor, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 weights of the shape (out, in) of `weight`, and the scale of each row (out, 1)."""
    scale = weight.abs().amax(dim=1, keepdim=True) / MAX
    scale[scale == 0] = 1.0
    # The columns that weigh most come first, while all others can still make good for them.
    order = hessian.diagonal().argsort(descending=True)
    remaining = weight[:, order].clone()
    inverse = _inverse_root(hessian[order][:, order])
    quantized = torch.empty_like(remaining)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        errors = torch.empty_like(remaining[:, start:end])
        for column in range(start, end):
            values = remaining[:, column : column + 1]
            rounded = (values / scale).round_().clamp_(-MAX, MAX)
            quantized[:, column : column + 1] = rounded
            error = (values - rounded * scale) / inverse[column, column]
            remaining[:, column + 1 : end] -= error * inverse[column, column + 1 : end]
            errors[:, column - start] = error.squeeze(1)
        remaining[:, end:] -= errors @ inverse[start:end, end:]
    in_place = torch.empty_like(quantized)
    in_place[:, order] = quantized
    return in_place.to(torch.int8), scale


def _inverse_root(hessian: torch.Tensor) -> torch.Tensor:
    """Upper triangular U with U^T U the inverse of the hessian."""
    lower = torch.linalg.cholesky(hessian.double())
    inverse = torch.cholesky_inverse(lower)
    return torch.linalg.cholesky(inverse, upper=True).float()
