"""Where the two ends of a spectrum lie, whatever the eigenvectors are; nothing is presumed converged.

A residual shows that an eigenvalue is near, not that it is the outermost. For Lanczos from a random direction in p
dimensions, after k steps, the chance that the outermost eigenvalue lies further out than its Ritz value by more than a
share e of the spectrum's extent is at most 1.648 sqrt(p) exp(-sqrt(e) (2 k - 1)), for every matrix (Kuczynski and
Wozniakowski, SIAM Journal on Matrix Analysis and Applications 13, 1992).
"""

import math

import torch
from torch import Tensor

from analysis.eigenvalue import Eigenvalue
from analysis.operators import SymmetricOperator
from analysis.recurrence import tridiagonal
from analysis.theory.statements import Interval, exactly
from analysis.vectors import random_rows

DENSE = 400
"""Up to this many parameters the matrix is written out."""

DEPTH, CHANCE = 60, 1e-4
"""Steps, and the chance that an eigenvalue lies outside the intervals."""


def spectrum_ends(operator: SymmetricOperator, seed: int = 0) -> tuple[Interval, Interval]:
    """The intervals in which the smallest and the largest eigenvalue lie: exact for few parameters or a small rank."""
    if operator.size <= DENSE:
        values = dense_spectrum(operator)
        return exactly(values[0].item()), exactly(values[-1].item())
    like = torch.empty(0, dtype=operator.torch_dtype, device=operator.device)
    generator = torch.Generator().manual_seed(seed)
    start = random_rows(1, operator.size, like, generator)[0]
    ritz = torch.linalg.eigvalsh(tridiagonal(operator, start, DEPTH, generator))
    low, high = ritz[0].item(), ritz[-1].item()
    share = unseen_share(operator.size, len(ritz)) if len(ritz) == DEPTH else 0.0
    reach = share / (1 - 2 * share) * (high - low)
    return Interval(low - reach, low), Interval(high, high + reach)


def above(top: Eigenvalue, tol: float) -> Interval:
    """Where the largest eigenvalue lies, as far as a search in float64 to `tol` says: not below its Ritz value."""
    return Interval(top.value, top.value + top.reach(tol))


def unseen_share(size: int, steps: int) -> float:
    """The share of the extent by which an end may lie further out, but for a chance of `CHANCE`."""
    return (math.log(1.648 * math.sqrt(size) / CHANCE) / (2 * steps - 1)) ** 2


def dense_spectrum(operator: SymmetricOperator) -> Tensor:
    """All eigenvalues, ascending (p,), from p products."""
    matrix = operator(torch.eye(operator.size, dtype=operator.torch_dtype, device=operator.device))
    values: Tensor = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return values
