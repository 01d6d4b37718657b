"""Whether a search by Lanczos overlooked an eigenvalue, because its eigenvectors are orthogonal to the Krylov space.

That happens to the further copies of a repeated eigenvalue, and to whatever the start vector has no part in. Let Q be
the rows found so far and C = (I - Q^T Q) A (I - Q^T Q). An eigenvector e orthogonal to Q is one of C. From a standard
normal z orthogonal to Q, d steps of Lanczos on C give Ritz values t_1, ..., t_d and the remainder w of the last, with

    |z| beta_1 ... beta_d = | prod_i (C - t_i) z |  >=  | prod_i (x - t_i) | |e . z|,    x the eigenvalue of e,

because the remainders' lengths beta_i make up the norm of the monic polynomial with the Ritz values as its roots
(Parlett, The Symmetric Eigenvalue Problem, chapter 12). e . z is standard normal, so it is below epsilon with
probability epsilon sqrt(2 / pi) at most: the left side over the product, for x at the border of what is wanted, bounds
the probability that e is there and does not show. (The same argument for power iteration: Dixon 1983; for the first
Ritz value, in advance of the run: Kuczynski and Wozniakowski 1992.) `overlooked` makes these steps beside a finished
search; `Chain` reads the same inequality off the search itself, with A in place of C.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.eigenpairs import PROBABILITY, rounding
from analysis.vectors import norm, orthogonalised, random_rows, require_finite

BEYOND = 2.0
"""Tolerances by which an eigenvalue lies beyond the wanted ones where a `Chain` excludes it; `overlooked` takes 1."""

_TARGET = math.log(PROBABILITY * math.sqrt(math.pi / 2))


def overlooked(
    basis: Tensor,
    borders: Sequence[tuple[int, float]],
    tol: float,
    max_products: int,
    generator: torch.Generator,
    scale: float = 0.0,
) -> Generator[Tensor, Tensor, tuple[bool | None, int]]:
    """Whether an eigenvalue beyond one of the `borders` has its eigenvectors orthogonal to Q, and the products spent.

    None instead of an answer where `max_products` were not enough for one.
    `basis` is Q (m, p), orthonormal rows. A border (1, x) is crossed by what is larger than x by more than `tol` |x|,
    (-1, x) by what is smaller; and by more than rounding in products with a matrix of norm `scale`.
    Like an `Iteration` it yields rows (1, p) and is sent their products with A.
    """
    size = basis.shape[1]
    slacks = [slack_at(x, tol, max(abs(x), scale), basis.dtype) for _, x in borders]
    own = basis[:0]  # rows grown from z, orthogonal to Q
    T = torch.zeros(0, 0, dtype=torch.float64, device=basis.device)
    w, log_length = orthogonalised(random_rows(1, size, basis, generator), basis)[0], 0.0
    steps = max(0, min(size - len(basis), max_products))
    for step in range(1, steps + 1):
        length = norm(w[0])
        log_length += math.log(length)
        own = torch.cat([own, w / length])
        image = require_finite((yield own[-1:]))
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
    return False if log_part(log_length + math.log(length), values, x + sign * slack) <= _TARGET else None


def slack_at(x: float, tol: float, scale: float, dtype: torch.dtype) -> float:
    """By how much an eigenvalue must exceed x to be another one than x, in a matrix of norm `scale`."""
    return max(tol * abs(x), rounding(scale, dtype))


def log_part(log_length: float, roots: Tensor, x: float) -> float:
    """The logarithm of |prod_i (A - t_i) z| / prod_i |x - t_i|, which bounds |e . z| for the eigenvalue x."""
    return log_length - (roots - x).abs().log().sum().item()


@dataclass
class Chain:
    """One Krylov space from a start vector q with a normal part, and what it excludes by the inequality above.

    Nothing is assumed here of e: it bounds |e . q| for every e whose eigenvalue lies beyond all Ritz values, and e . q
    is normal with standard deviation `sigma` at least. A restart that keeps some Ritz vectors goes on as the Krylov
    space of prod (A - t_i) q over the t_i let go (Sorensen 1992), so these stay roots of the polynomial.
    """

    sigma: float
    log_length: float  # of |q|, then of the polynomial's value at q
    let_go: Tensor  # (n,) float64, roots of former restarts

    def missed(self, values: Tensor, residuals: Tensor, borders: Sequence[tuple[int, float]], slack: float) -> float:
        """The probability, at most, that an eigenvalue x beyond a border by `slack` stayed unseen.

        `values` and `residuals` are all of T. The unit vector e has the part residual_i (e . w) / (|w| |x - t_i|) in
        the i-th Ritz vector, which leaves less than 1 for e . w / |w|.
        """
        if self.log_length == -math.inf:
            return 0.0
        roots, bound = torch.cat([self.let_go, values]), 0.0
        for sign, x in borders:
            at = x + sign * slack
            inside = ((residuals / (values - at)) ** 2).sum().item()
            part = log_part(self.log_length, roots, at) - math.log1p(inside) / 2 - math.log(self.sigma)
            bound += math.sqrt(2 / math.pi) * math.exp(min(part, 1.0))
        return bound

    def extended(self, length: float) -> None:
        """Take in the next remainder's length."""
        self.log_length += math.log(length) if length > 0 else -math.inf
