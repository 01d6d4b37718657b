"""Residuals in float64 for pairs that were found in float32, and what float32 takes of other numbers.

H as float32 evaluates it is not H: beside a large eigenvalue the difference exceeds a small residual many times over,
and no product in float32 shows it. So the pairs found are multiplied once more in float64, by a copy of the model that
keeps no graphs. theta = v^T H v and r = H v - theta v of that product need no trust in any other.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from analysis.batches import moved, regrouped
from analysis.eigenpairs import Eigenpairs, rounding, vanish
from analysis.ieee import ieee
from analysis.problem import Problem
from analysis.vectors import quotients

_VECTORS = 2  # of the pairs' type that a pair takes until it is confirmed: its image in float64


def in_float64(problem: Problem) -> Problem:
    """The same L at the same parameters, evaluated in float64, a graph at a time and in no more memory."""
    return replace(
        problem.of_a_copy(torch.float64),
        chunk_size=max(1, problem.chunk_size // 2),
        cached_samples=0,
    )


def in_float64_where_it_runs(problem: Problem) -> Problem | None:
    """The problem in float64; None where the model or the loss does not run in it."""
    if problem.dtype == torch.float64:
        return problem
    double = in_float64(problem)
    try:
        with torch.no_grad():  # one sample, which may be one that is not counted
            double.share(moved(next(regrouped(problem.data, 1)), double.device, double.dtype), {})
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a tensor that stays in float32: the loss's weights, a cast in the model
        return None
    return double


@ieee()
def lost_to_rounding(product: Callable[[Tensor], Tensor] | None, vector: Tensor, image: Tensor) -> Tensor:
    """H v (p,) from `product` in float64 less `image`, H v as it was.

    It is 0 where there is no product, and with a warning where that does not run.
    """
    if product is not None:
        try:
            return product(vector[None])[0] - image
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a tensor that stays in float32: the loss's weights, a cast in the model
            warnings.warn("What rounding takes is not known: the model does not run in float64.", stacklevel=2)
    return torch.zeros_like(image, dtype=torch.float64)


def confirmed(
    pairs: Eigenpairs, tol: float, product: Callable[[Tensor], Tensor] | None, room: int | None = None
) -> Eigenpairs:
    """The pairs with values and residuals from `product`, (b, p) -> (b, p) float64; unchanged where there is none.

    Pairs go through together, but for as many as would take more than `room` vectors of theirs (None: any number).
    Also unchanged, `confirmed` staying false, where the model does not run in float64. A residual that is above the
    tolerance in float64 only is `rounded`: float32 does not carry that tolerance here.
    """
    if product is None or pairs.confirmed:
        return pairs
    together = len(pairs.values) if room is None else max(1, room // _VECTORS)
    found = []
    for some in pairs.vectors.T.split(together):
        try:
            found.append(quotients(some, product(some)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a tensor that stays in float32: the loss's weights, a cast in the model
            return pairs
    values, residuals = (torch.cat(parts) for parts in zip(*found, strict=True))
    residuals = residuals.clamp(min=rounding(max(values.abs().max().item(), pairs.scale), torch.float64))
    gaps = pairs.residuals**2 / pairs.quadratic  # the residual itself where none was found
    sharper = torch.where(pairs.quadratic < pairs.residuals, residuals**2 / gaps, residuals)
    within = (residuals <= tol * values.abs()) | vanish(residuals, values, pairs.vanishing)
    ended = pairs.converged | pairs.rounded
    return replace(
        pairs,
        values=values,
        residuals=residuals,
        quadratic=torch.minimum(sharper, residuals),
        converged=ended & within,
        rounded=ended & ~within,
        confirmed=True,
        products=pairs.products + len(values),
    )
