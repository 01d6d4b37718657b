"""Inner products that accumulate in float64, whatever the vectors' type.

torch's float32 sum over 800,000 numbers is off by some 1e-5, which moves an eigenvalue by as much; vectors are
therefore taken to float64 piece by piece, in pieces that stay in the cache.
"""

import math

import torch
from torch import Tensor

_PIECE = 1 << 15
_NOISE = 0.01  # of a start vector's length


def dots(left: Tensor, right: Tensor) -> Tensor:
    """left right^T in float64 for rows of equal length: (m, p), (b, p) -> (m, b)."""
    if left.dtype == torch.float64:
        return left @ right.T
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[1], _PIECE):
        total += left[:, start : start + _PIECE].double() @ right[:, start : start + _PIECE].double().T
    return total


def dot(left: Tensor, right: Tensor) -> float:
    """The inner product of two vectors (p,)."""
    return float(dots(left[None], right[None]))


def norm(vector: Tensor) -> float:
    """The Euclidean norm of (p,)."""
    return math.sqrt(dot(vector, vector))


def combine(weights: Tensor, rows: Tensor) -> Tensor:
    """Linear combinations of rows: (b, m) weights, (m, p) -> (b, p) in the rows' type."""
    return weights.to(rows.dtype) @ rows


def orthogonalised(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """w - Q (Q^T w), done twice, and the coefficients Q^T w: rows (b, p), (n, p) -> (b, p), (n, b).

    The second time removes what rounding left of the first, whose inner products therefore need not be in float64.
    """
    first = basis @ w.T
    w = w - combine(first.T, basis)
    second = dots(basis, w)
    return w - combine(second.T, basis), first.double() + second


def random_rows(count: int, size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal rows (count, size), the same on every device for a given CPU generator."""
    return torch.randn(count, size, dtype=torch.float64, generator=generator).to(like)


def start_rows(count: int, size: int, like: Tensor, start: Tensor | None, generator: torch.Generator) -> Tensor:
    """Rows (count, size) to start an iteration from: random ones, or those of `start` (size, m) with a little noise.

    More start vectors than rows are shared out and added up; the noise keeps every eigenvector within reach.
    """
    rows = random_rows(count, size, like, generator)
    columns = like.new_empty(size, 0) if start is None else start.to(rows)
    for i in range(min(count, columns.shape[1])):
        known = columns[:, i::count].sum(1)
        length = norm(known)
        if length > 0:
            rows[i] = known / length + (_NOISE / norm(rows[i])) * rows[i]
    return rows
