"""What rounding takes of the curvature of a saturated softmax or sigmoid.

Their second derivative is p (1 - p), which torch takes as p - p^2: in float64 exact to eps, whatever is left of it. So
where every prediction is sure, right or wrong, the Hessian itself holds as much rounding as eps is of 1 - p.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.distributed import failing_together, summed_number
from analysis.losses import SummedLoss, TorchLoss, class_axis, cross_entropy, saturates
from analysis.own_losses import logits_of
from analysis.parametric_loss import ParametricLoss


def lost_share(problem: ParametricLoss, loss: float) -> float:
    """The share of the Hessian that rounding may have taken, by L and by a pass over the predictions.

    Zero for losses that are not known to saturate.
    """
    if not saturates(problem.loss):
        return 0.0
    mean = loss / problem.samples if problem.loss.reduction == "sum" else loss  # 1 - p is O(mean) where all are right
    eps = torch.finfo(torch.float64).eps
    return eps / max(min(mean, _unsureness(problem)), eps)  # of 1 - p below eps the other classes' p is left


def _unsureness(problem: ParametricLoss) -> float:
    """The mean over all predictions of 1 - max p; infinite where the model does not show its logits."""
    total, count = 0.0, 0
    with failing_together(problem.device, problem.distributed), torch.no_grad():
        for chunk in problem.chunks():
            given = problem.loss.arguments(problem.model, chunk.targets)
            logits = logits_of(problem.outputs(chunk.inputs, {}, given))
            if isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() > 0:
                own = _complements(problem.loss, logits.double(), chunk.targets)
                total, count = total + own.sum().item(), count + own.numel()
    count = round(summed_number(count, problem.device, problem.distributed))
    return summed_number(total, problem.device, problem.distributed) / count if count else float("inf")


def _complements(loss: SummedLoss, logits: Tensor, targets: Tensor) -> Tensor:
    """1 - p of every prediction's likeliest outcome, to within eps."""
    known: Any = loss.function.function if isinstance(loss.function, TorchLoss) else loss.function
    if known is F.binary_cross_entropy_with_logits:
        return torch.sigmoid(-logits.abs())
    axis = class_axis(logits, targets) if known is cross_entropy else 1 if known is F.cross_entropy else -1
    below = logits - logits.amax(axis, keepdim=True)
    others = below.exp().sum(axis) - 1  # the likeliest's own
    return others / (1 + others)
