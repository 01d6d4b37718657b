"""Whether products are those of a symmetric matrix and of a sum over samples: not all second derivatives are right."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from analysis.batches import Batch, batch_length, moved, sliced
from analysis.derivatives import gradients
from analysis.errors import AsymmetryError, MeasurementError
from analysis.parametric_loss import ParametricLoss
from analysis.vectors import dot, norm, random_rows

_FEW = 4  # samples
_TOLERANCE = 1e-3  # of |H v| + |H u|: rounding in float32 leaves less, a wrong derivative more
_ROUNDINGS = 1000  # times the precision


def refuse_wrong_products(problem: ParametricLoss, first: Batch) -> None:
    """Try products H u and H v on a few samples.

    Raises `AsymmetryError` where u . H v is not v . H u, and `MeasurementError` where u . H v is not the sum of its
    parts by sample, as in a model that mixes samples in a way that the loss does not show.

    Where the loss is saturated H is nothing but rounding, which is not symmetric: a disagreement within what rounding
    may leave of the loss's curvature, |J u| |J v| at most for the usual losses, is none.
    """
    count = min(_FEW, batch_length(first))
    few = moved(sliced(first, 0, count), problem.device, problem.dtype)
    generator = torch.Generator().manual_seed(0)
    u, v = random_rows(2, problem.size, problem.point(), generator)
    H_u, H_v = _products(problem, few, [u, v])
    apart = sum(dot(u, *_products(problem, sliced(few, n, n + 1), [v])) for n in range(count))
    one, other = dot(u, H_v), dot(v, H_u)
    if max(abs(one - other), abs(one - apart)) <= _TOLERANCE * (norm(H_u) + norm(H_v)):
        return
    forward = norm(_pushed_forward(problem, few, u)) * norm(_pushed_forward(problem, few, v))
    rounding = _ROUNDINGS * torch.finfo(problem.dtype).eps * forward
    if abs(one - other) > rounding:
        raise AsymmetryError(
            f"The Hessian's products are not symmetric (u.Hv = {one:.6g}, v.Hu = {other:.6g}): a second derivative of "
            "the model or loss is wrong, in torch or in a function of your own; replace it."
        )
    if abs(one - apart) > rounding:
        raise MeasurementError(
            f"Second derivatives of {count} samples together are not the sum of those of each (u.Hv = {one:.6g} for "
            f"{apart:.6g}): samples influence one another, so that L is no sum over them; take that out of the model."
        )


def _products(problem: ParametricLoss, batch: Batch, vectors: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian of the batch's summed loss times each of the vectors (p,)."""
    leaves = problem.leaves()
    slopes = gradients([problem.share(batch, leaves).total], list(leaves.values()), create_graph=True)
    return [problem.flatten(gradients(slopes, list(leaves.values()), problem.split(v))) for v in vectors]


def _pushed_forward(problem: ParametricLoss, few: Batch, u: Tensor) -> Tensor:
    """J u for all numbers in the outputs, as one vector."""
    leaves = problem.leaves()
    parts = [x for x in tree_leaves(problem.outputs(few, leaves)) if isinstance(x, Tensor) and x.requires_grad]
    dummies = [torch.zeros_like(part, requires_grad=True) for part in parts]
    pulled_back = gradients(parts, list(leaves.values()), dummies, create_graph=True)
    return torch.cat([part.abs().flatten() for part in gradients(pulled_back, dummies, problem.split(u))])
