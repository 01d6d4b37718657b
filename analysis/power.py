"""Power iteration with deflation: the largest eigenvalues in magnitude, one after another.

    v <- A v / |A v|,   lambda = v^T A v,   stopped when |A v - lambda v| <= tol |lambda|

(Golub and Van Loan, Matrix Computations, section 8.2). The residual bounds the error of lambda; the change of lambda
from step to step does not, and stops early wherever the convergence is slow. Pairs already found are deflated by
keeping v orthogonal to them, and at the end a Rayleigh-Ritz step over all of them removes what deflation with inexact
vectors mixed in.
"""

from collections.abc import Generator

import torch
from torch import Tensor

from analysis.confirmation import confirmed
from analysis.eigenpairs import (
    PROBABILITY,
    Eigenpairs,
    Iteration,
    Progress,
    carried,
    certified,
    drive,
    is_finished,
    judged,
    rayleigh_ritz,
    relative,
    require_pairs,
)
from analysis.operators import SymmetricOperator
from analysis.overlooked import Seen, limits_of, overlooked
from analysis.vectors import combine, dot, dots, norm, require_finite, start_rows

_SAFETY = 0.9  # of the tolerance, so that the final rotation among the pairs does not lift a residual above it


def power_iteration(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_iter: int = 200,
    start: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The k eigenvalues of largest magnitude, in that order, and min(k, p) pairs at most.

    What deflation left over is looked for at the end; if anything shows, the iteration is repeated from random vectors.
    `max_iter` limits the products per pair, the look's among them; `start` (p, m) gives start vectors for the first m
    pairs (default: the operator's own).
    Eigenvalues lambda and -lambda of equal magnitude do not converge one by one; the result then says so.

    >>> import torch
    >>> from analysis.operators import matrix_operator
    >>> from analysis.power import power_iteration
    >>> A = matrix_operator(torch.diag(torch.tensor([5.0, 3.0, 1.0])))
    >>> pairs = power_iteration(A, k=2)
    >>> [round(value, 3) for value in pairs.values.tolist()], pairs.converged.tolist()
    ([5.0, 3.0], [True, True])
    """
    like = torch.empty(0, dtype=operator.torch_dtype, device=operator.device)
    start, seed = operator.beginning(start, seed)
    steps = power_steps(operator.size, like, k, tol, max_iter, start, seed, operator.room, progress)
    found = confirmed(drive(steps, lambda v: operator(v.T).T), tol, operator.exact, operator.room)
    return carried(found, operator.lost, tol)


def power_steps(
    size: int,
    like: Tensor,
    k: int,
    tol: float,
    max_iter: int,
    start: Tensor | None = None,
    seed: int = 0,
    room: int | None = None,
    progress: Progress | None = None,
) -> Iteration:
    """The iteration of `power_iteration`, asking for one product (1, p) at a time; vectors are of `like`'s kind."""
    k = min(require_pairs(k), size)
    generator = torch.Generator().manual_seed(seed)
    spent, spare = 0, PROBABILITY
    while True:
        each = max(1, max_iter - spent // k)
        pairs, seen = yield from _deflated(start_rows(k, size, like, start, generator), tol, each, progress)
        spent += pairs.products
        if not pairs.finished:
            return judged(pairs, 1.0, spent)
        last, most = pairs.values[-1].abs().item(), pairs.values[0].abs().item()
        limits = limits_of([(1, last), (-1, -last)], tol, most, like.dtype)
        spare /= 2  # looks may be repeated, and what each may miss adds up
        verdict = yield from overlooked(seen, limits, spare, max(0, max_iter * k - spent), room, generator)
        spent += verdict.products
        if verdict.crossed is False:
            missed = 0.0 if k == size else PROBABILITY
            return judged(pairs, missed, spent, seen.reach(limits, verdict.beyond, k))
        if spent >= max_iter * k:
            return judged(pairs, 1.0, spent)
        start = None


def _deflated(
    starts: Tensor, tol: float, max_iter: int, progress: Progress | None
) -> Generator[Tensor, Tensor, tuple[Eigenpairs, Seen]]:
    """A pair from every row of `starts` (k, p), none of them compared with what else there may be, and their space."""
    size = starts.shape[1]
    found, images = starts.new_empty(0, size), starts.new_empty(0, size)
    products, scale = 0, 0.0
    for direction in starts:
        for _ in range(max_iter):
            v = _outside(direction, found)
            v = v / norm(v)
            image = require_finite((yield v[None]))[0]
            products += 1
            direction = _outside(image, found)
            value = dot(v, direction)
            residual = norm(direction - value * v)
            scale = max(scale, abs(value))
            if progress:
                progress(products, relative(residual, value))
            if is_finished(residual, value, scale, _SAFETY * tol, starts.dtype):
                break
        found, images = torch.cat([found, v[None]]), torch.cat([images, image[None]])
    values, vectors, images = rayleigh_ritz(found, images)
    order = values.abs().argsort(descending=True)
    values, vectors, images = values[order], vectors[order], images[order]
    rest = images - values[:, None].to(vectors) * vectors
    seen = Seen(vectors, values, dots(rest, rest))
    return certified(vectors, images, scale, tol, products), seen


def _outside(vector: Tensor, found: Tensor) -> Tensor:
    """The part of (p,) orthogonal to orthonormal rows (m, p); twice, because once leaves rounding behind."""
    for _ in range(2 if len(found) else 0):
        vector = vector - combine(dots(vector[None], found), found)[0]
    return vector
