"""The steps of Lanczos' recurrence, in which every vector is made orthogonal to all before it.

What is sought with them is said elsewhere: extreme eigenvalues (`analysis.lanczos`), densities (`analysis.density`).
"""

import torch
from torch import Tensor

from analysis.eigenpairs import rounding
from analysis.ieee import ieee
from analysis.operators import SymmetricOperator
from analysis.vectors import norm, orthogonalised, random_rows, require_finite

_LITTLE = 1000  # roundings that are as good as nothing


@ieee()
def tridiagonal(operator: SymmetricOperator, start: Tensor, depth: int, generator: torch.Generator) -> Tensor:
    """T (m, m) float64, tridiagonal to rounding, of A Q^T = Q^T T + w e_m^T, with orthonormal rows Q.

    m is `depth`, the number of steps from `start` (p,), or less where the Krylov space ends before.
    """
    basis = start.new_empty(depth, len(start))
    T = torch.zeros(depth, depth, dtype=torch.float64, device=start.device)
    w, scale = start[None], 0.0
    for m in range(depth):
        if norm(w[0]) <= rounding(scale, w.dtype):
            return T[:m, :m]
        extend(basis, m, w, scale, generator)
        w, column = orthogonalised(require_finite(operator(basis[m]))[None], basis[: m + 1])
        T[: m + 1, m : m + 1], T[m : m + 1, : m + 1] = column, column.T
        scale = max(scale, column.abs().max().item())
    return T


def extend(basis: Tensor, n: int, w: Tensor, scale: float, generator: torch.Generator) -> int:
    """Add the directions of `w` to the first n orthonormal rows of Q, random ones where w has none left.

    The rows of w have been made orthogonal to those n, which rounding undoes where next to nothing is left of a row.
    Returns the number of rows of Q, which stays within the space.
    """
    first, eps = n, torch.finfo(w.dtype).eps * scale
    for row in w[: basis.shape[1] - n]:
        candidate, before = row[None], norm(row)
        length = before
        if n > first:
            candidate, _ = orthogonalised(candidate, basis[first:n])
            length = norm(candidate[0])
        if length <= max(before / 2, _LITTLE * eps):
            candidate, _ = orthogonalised(candidate, basis[:n])
            length = norm(candidate[0])
        least = rounding(scale, w.dtype)
        while length <= least:
            drawn = random_rows(1, basis.shape[1], w, generator)
            candidate, _ = orthogonalised(drawn, basis[:n])
            length, least = norm(candidate[0]), rounding(norm(drawn[0]), w.dtype)  # not in units of the matrix, as w is
        torch.div(candidate[0], length, out=basis[n])
        n += 1
    return n
