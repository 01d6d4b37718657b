"""Whether a search by Lanczos overlooked an eigenvalue, because its eigenvectors are orthogonal to the Krylov space.

That happens to the further copies of a repeated eigenvalue, and to whatever the start vector has no part in. Let Q be
the rows found so far and C = (I - Q^T Q) A (I - Q^T Q). An eigenvector e orthogonal to Q is one of C. From a standard
normal z orthogonal to Q, d steps of Lanczos on C give Ritz values t_1, ..., t_d and the remainder w of the last, with

    |z| beta_1 ... beta_d = | prod_i (C - t_i) z |  >=  | prod_i (x - t_i) | |e . z|,    x the eigenvalue of e,

because the remainders' lengths beta_i make up the norm of the monic polynomial with the Ritz values as its roots
(Parlett, The Symmetric Eigenvalue Problem, chapter 12). e . z is standard normal, so it is below epsilon with
probability epsilon sqrt(2 / pi) at most: the left side over the product, for x at the border of what is wanted, bounds
the probability that e is there and does not show. (The same argument for power iteration: Dixon 1983.)
"""

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from analysis.eigenpairs import rounding
from analysis.vectors import norm, orthogonalised, random_rows

PROBABILITY = 0.05
"""The most by which an eigenvalue among the wanted, if there is one, may stay overlooked."""

_TARGET = math.log(PROBABILITY * math.sqrt(math.pi / 2))


def overlooked(
    basis: Tensor, borders: Sequence[tuple[int, float]], tol: float, max_products: int, generator: torch.Generator
) -> Generator[Tensor, Tensor, tuple[bool | None, int]]:
    """Whether an eigenvalue beyond one of the `borders` has its eigenvectors orthogonal to Q, and the products spent.

    None instead of an answer where `max_products` were not enough for one.
    `basis` is Q (m, p), orthonormal rows. A border (1, x) is crossed by what is larger than x by more than `tol` |x|,
    (-1, x) by what is smaller. Like an `Iteration` it yields rows (1, p) and is sent their products with A.
    """
    size = basis.shape[1]
    slacks = [max(tol * abs(x), rounding(abs(x), basis.dtype)) for _, x in borders]
    own = basis[:0]  # rows grown from z, orthogonal to Q
    T = torch.zeros(0, 0, dtype=torch.float64, device=basis.device)
    w, log_length = orthogonalised(random_rows(1, size, basis, generator), basis)[0], 0.0
    steps = max(0, min(size - len(basis), max_products))
    for step in range(1, steps + 1):
        length = norm(w[0])
        log_length += math.log(length)
        own = torch.cat([own, w / length])
        image = yield own[-1:]
        w, column = orthogonalised(orthogonalised(image, basis)[0], own)
        T = torch.cat([torch.cat([T, column[:-1]], dim=1), column.T])
        verdicts = [
            _crossed(sign, x, slack, T, norm(w[0]), log_length)
            for (sign, x), slack in zip(borders, slacks, strict=True)
        ]
        if any(verdicts):
            return True, step
        if None not in verdicts or norm(w[0]) <= rounding(column.abs().max().item(), w.dtype):
            return False, step  # in the second case C maps what z has reached to itself: there is no more to see
    return (False if steps == size - len(basis) else None), steps


def _crossed(sign: int, x: float, slack: float, T: Tensor, length: float, log_length: float) -> bool | None:
    """Whether an eigenvalue lies beyond a border, None while that is open.

    T is C projected, `length` |w|, `log_length` the logarithm of the product of all lengths before it.
    """
    values, s = torch.linalg.eigh(T)
    outermost = int((sign * values).argmax())
    distance = sign * (values[outermost].item() - x)
    if distance > slack:
        return True
    if length == 0:
        return None
    if distance >= -slack and length * abs(s[-1, outermost].item()) <= slack:
        return False  # one more of the last wanted: it changes no value
    reached = log_length + math.log(length) - (values - x - sign * slack).abs().log().sum().item()
    return False if reached <= _TARGET else None
