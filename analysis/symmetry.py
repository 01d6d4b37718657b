"""Whether products are those of a symmetric matrix and of a sum over samples: not all second derivatives are right."""

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
    """Try products on a few samples: H v together, and H u as the sum over samples; u . H v must be v . H u.

    Where it is not, raises `AsymmetryError` if v . H u is another also together, and `MeasurementError` if it is not
    the sum of its parts by sample, as in a model that mixes samples in a way that the loss does not show.

    Where the loss is saturated H is nothing but rounding, which is not symmetric: a disagreement within what rounding
    may leave of the loss's curvature, |J u| |J v| at most for the usual losses, is none. So is one within the rounding
    of samples whose products cancel.
    """
    count = min(_FEW, batch_length(first))
    few = moved(sliced(first, 0, count), problem.device, problem.dtype)
    generator = torch.Generator().manual_seed(0)
    u, v = random_rows(2, problem.size, problem.point(), generator)
    H_v = _product(problem, few, v)
    H_u, lengths = torch.zeros_like(H_v), 0.0  # added up over samples
    for n in range(count):
        of_one = _product(problem, sliced(few, n, n + 1), u)
        H_u, lengths = H_u + of_one, lengths + norm(of_one)
    one, apart = dot(u, H_v), dot(v, H_u)
    if abs(one - apart) <= _TOLERANCE * (norm(H_u) + norm(H_v)):
        return
    other = dot(v, _product(problem, few, u))
    forward = norm(_pushed_forward(problem, few, u)) * norm(_pushed_forward(problem, few, v))
    rounding = _ROUNDINGS * torch.finfo(problem.dtype).eps * max(forward, lengths)
    if abs(one - other) > rounding:
        raise AsymmetryError(
            f"The Hessian's products are not symmetric (u.Hv = {one:.6g}, v.Hu = {other:.6g}): a second derivative of "
            "the model or loss is wrong, in torch or in a function of your own; replace it."
        )
    if abs(other - apart) > rounding:
        raise MeasurementError(
            f"Second derivatives of {count} samples together are not the sum of those of each (v.Hu = {other:.6g} for "
            f"{apart:.6g}): samples influence one another, so that L is no sum over them; take that out of the model."
        )


def _product(problem: ParametricLoss, batch: Batch, v: Tensor) -> Tensor:
    """The Hessian of the batch's summed loss times v (p,)."""
    leaves = problem.leaves()
    slopes = gradients([problem.share(batch, leaves).total], list(leaves.values()), create_graph=True)
    return problem.flatten(gradients(slopes, list(leaves.values()), problem.split(v)))


def _pushed_forward(problem: ParametricLoss, few: Batch, u: Tensor) -> Tensor:
    """J u for all numbers in the outputs, as one vector."""
    leaves = problem.leaves()
    parts = [x for x in tree_leaves(problem.outputs(few, leaves)) if isinstance(x, Tensor) and x.requires_grad]
    dummies = [torch.zeros_like(part, requires_grad=True) for part in parts]
    pulled_back = gradients(parts, list(leaves.values()), dummies, create_graph=True)
    return torch.cat([part.abs().flatten() for part in gradients(pulled_back, dummies, problem.split(u))])
