"""What rounding takes of the curvature of a saturated softmax or sigmoid.

Their second derivative is p (1 - p), which torch takes as p - p^2: in float64 exact to eps, whatever is left of it. So
where every prediction is sure, right or wrong, the Hessian itself holds as much rounding as eps is of 1 - p.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.class_axes import class_axis
from analysis.distributed import summed_number
from analysis.function_mode import FunctionMode
from analysis.losses import SummedLoss, TorchLoss, counted, cross_entropy, saturates, shift_of
from analysis.own_losses import OwnLoss, logits_of
from analysis.parametric_loss import ParametricLoss


def lost_share(problem: ParametricLoss) -> float:
    """The share of the Hessian that rounding may have taken: eps over the mean of 1 - p, seen in one forward pass.

    Zero for losses that are not known to saturate. The mean is that over the predictions or, where it is less, L, which
    is of its order where all are right; of a loss that the model returns itself it is L, since nothing says what that
    loss makes of the outputs; and of a function it is that over every softmax and sigmoid that it takes, padding that
    it masks itself among them, or, where that is more, L.
    """
    known, seen = saturates(problem.loss), _Saturating()
    if isinstance(problem.loss.function, TorchLoss) and problem.loss.name not in _FUNCTIONS:
        return 0.0
    loss = total = count = 0.0
    with problem.passing(), torch.no_grad():
        for chunk in problem.chunks():
            outputs, left = problem.run((chunk.inputs, chunk.targets), {})
            logits = logits_of(outputs)
            shown = isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() > 0
            if known and shown and not isinstance(problem.loss.function, OwnLoss):
                unsure = _complements(problem.loss, logits.double(), chunk.targets)
                total, count = total + unsure.sum().item(), count + unsure.numel()
            with problem.at({}, left), nullcontext() if known else seen:
                loss += chunk.weight * problem.loss(outputs, chunk.targets).item()
    loss, total, count = (summed_number(x, problem.device, problem.distributed) for x in (loss, total, count))
    eps = torch.finfo(torch.float64).eps
    mean = loss / problem.samples if problem.loss.reduction == "sum" else loss
    if not known:
        each = (seen.total, seen.count, float(seen.opaque))
        of_all, met, opaque = (summed_number(x, problem.device, problem.distributed) for x in each)
        return eps / max(of_all / met if met else 0.0, abs(mean), eps) if met or opaque else 0.0
    if mean < 0:  # no softmax's: one that the model returns, such as that of a density
        return 0.0
    return eps / max(min(mean, total / count if count else mean), eps)  # below eps the other classes' p is left


class _Saturating(FunctionMode):
    """Within the block, note how unsure every softmax and sigmoid is that is taken, alone or in a loss of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.count, self.opaque = 0.0, 0, False

    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        unsure = _FUNCTIONS.get(getattr(func, "__name__", ""))
        given = {**dict(zip(("input", "target"), args, strict=False)), **kwargs}
        x = given.get("input")
        if unsure is not None and isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 0 and x.numel() > 0:
            try:
                found = unsure(x.detach().double(), {"dim": args[1] if len(args) > 1 else None, **given})
                found = found[found.isfinite()]
                self.total, self.count = self.total + found.sum().item(), self.count + found.numel()
            except RuntimeError:  # within torch.vmap numbers cannot be looked at
                self.opaque = True
        return func(*args, **kwargs)


def _of_softmax(logits: Tensor, given: Mapping[str, Any]) -> Tensor:
    axis = given["dim"]
    if isinstance(axis, tuple | list) and len(axis) == 1:
        axis = axis[0]
    return _others(logits, axis if isinstance(axis, int) else -1)


def _of_cross_entropy(logits: Tensor, given: Mapping[str, Any]) -> Tensor:
    return _counted(_others(logits, 1 if logits.dim() > 1 else 0), given)


def _of_log_probabilities(logs: Tensor, given: Mapping[str, Any]) -> Tensor:
    return _counted(-torch.expm1(logs.amax(1 if logs.dim() > 1 else 0)), given)


def _counted(unsure: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Of those whose labels count, where there are labels."""
    targets = given.get("target")
    labels = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.shape == unsure.shape
    return unsure[counted(targets, given)] if isinstance(targets, Tensor) and labels else unsure


def _of_sigmoid(logits: Tensor, given: Mapping[str, Any]) -> Tensor:
    return torch.sigmoid(-logits.abs())


def _of_probabilities(p: Tensor, given: Mapping[str, Any]) -> Tensor:
    return torch.minimum(p, 1 - p)


_FUNCTIONS: Mapping[str, Callable[[Tensor, Mapping[str, Any]], Tensor]] = {
    **dict.fromkeys(("softmax", "log_softmax", "logsumexp"), _of_softmax),
    "cross_entropy": _of_cross_entropy,
    "nll_loss": _of_log_probabilities,
    "binary_cross_entropy": _of_probabilities,
    **dict.fromkeys(
        ("sigmoid", "logsigmoid", "log_sigmoid", "softplus", "binary_cross_entropy_with_logits", "soft_margin_loss"),
        _of_sigmoid,
    ),
}
"""1 - p of the likeliest outcome, by what each of torch's functions is given and with which options."""


def _others(logits: Tensor, axis: int) -> Tensor:
    """1 - p of the likeliest class, to within eps."""
    below = logits - logits.amax(axis, keepdim=True)
    others = below.exp().sum(axis) - 1  # the likeliest's own
    return others / (1 + others)


def _complements(loss: SummedLoss, logits: Tensor, targets: Tensor) -> Tensor:
    """1 - p of every prediction's likeliest outcome, to within eps, of those whose targets count."""
    known: Any = loss.function.function if isinstance(loss.function, TorchLoss) else loss.function
    if known is F.binary_cross_entropy_with_logits:
        return torch.sigmoid(-logits.abs())
    axis = class_axis(logits, targets) if known is cross_entropy else 1 if known is F.cross_entropy else -1
    unsure = _others(logits, axis)
    if shift_of(loss):
        unsure, targets = unsure[:, :-1], targets[:, 1:]
    options = loss.function.options if isinstance(loss.function, TorchLoss) else {}
    return unsure[counted(targets, options)] if not targets.is_floating_point() else unsure
