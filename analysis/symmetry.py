"""Whether products are those of a symmetric matrix: torch's second derivatives are not all right."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from analysis.batches import Batch, batch_length, moved, sliced
from analysis.derivatives import gradients
from analysis.errors import AsymmetryError
from analysis.parametric_loss import ParametricLoss
from analysis.vectors import dot, norm, random_rows

_FEW = 4  # samples
_TOLERANCE = 1e-3  # of |H v| + |H u|: rounding in float32 leaves less, a wrong derivative more
_ROUNDINGS = 1000  # times the precision


def refuse_asymmetric(problem: ParametricLoss, first: Batch) -> None:
    """Raise `AsymmetryError` where u . H v is not v . H u on a few samples.

    Where the loss is saturated H is nothing but rounding, which is not symmetric: a disagreement within what rounding
    may leave of the loss's curvature, |J u| |J v| at most for the usual losses, is none.
    """
    few = moved(sliced(first, 0, min(_FEW, batch_length(first))), problem.device, problem.dtype)
    leaves = problem.leaves()
    generator = torch.Generator().manual_seed(0)
    u, v = random_rows(2, problem.size, problem.point(), generator)
    loss = problem.share(few, leaves).total
    slopes = gradients([loss], list(leaves.values()), create_graph=True)
    H_u, H_v = (problem.flatten(gradients(slopes, list(leaves.values()), problem.split(w))) for w in (u, v))
    difference = abs(dot(u, H_v) - dot(v, H_u))
    if difference <= _TOLERANCE * (norm(H_u) + norm(H_v)):
        return
    forward = norm(_pushed_forward(problem, few, u)) * norm(_pushed_forward(problem, few, v))
    if difference > _ROUNDINGS * torch.finfo(problem.dtype).eps * forward:
        raise AsymmetryError(
            f"The Hessian's products are not symmetric (u.Hv = {dot(u, H_v):.6g}, v.Hu = {dot(v, H_u):.6g}): a "
            "second derivative of the model or loss is wrong, in torch or in a function of your own; replace it."
        )


def _pushed_forward(problem: ParametricLoss, few: Batch, u: Tensor) -> Tensor:
    """J u for all numbers in the outputs, as one vector."""
    leaves = problem.leaves()
    parts = [x for x in tree_leaves(problem.outputs(few[0], leaves)) if isinstance(x, Tensor) and x.requires_grad]
    dummies = [torch.zeros_like(part, requires_grad=True) for part in parts]
    pulled_back = gradients(parts, list(leaves.values()), dummies, create_graph=True)
    return torch.cat([part.abs().flatten() for part in gradients(pulled_back, dummies, problem.split(u))])
