"""Models, losses and data of which L is no fixed sum over samples, so that its second derivatives mean nothing."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from analysis.batches import Inspected, batch_length, moved, sliced
from analysis.errors import MeasurementError

if TYPE_CHECKING:
    from analysis.problem import Problem

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_SAME_LOSS = 1e-4  # relative; float32 losses of the same samples differ by far less, other samples by far more


def refuse_unfit(module: nn.Module) -> None:
    """Raise `MeasurementError` for a module that is random or mixes the samples of a batch."""
    kind = type(module).__name__
    if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
        raise MeasurementError(
            f"{kind} uses batch statistics here, so the loss is no sum over samples and its Hessian depends on the "
            "batches; use evaluation mode with running statistics."
        )
    if isinstance(module, _DROPOUTS) and module.training and module.p > 0:
        raise MeasurementError(f"{kind} is random in training mode, so L has no fixed Hessian; use mode='eval'.")


def refuse_dependent_samples(problem: "Problem", inspected: Inspected) -> None:
    """Check on a few samples that L is one fixed number and a sum over samples with the stated reduction."""
    few = min(4, batch_length(inspected.first))

    def loss(start: int, end: int) -> float:
        inputs, targets = moved(sliced(inspected.first, start, end), problem.device, problem.dtype)
        with torch.no_grad():
            value = problem.loss(problem.outputs(inputs, problem.leaves()), targets)
        if value.dim() != 0:
            raise MeasurementError(f"The loss must return a scalar, not a tensor of shape {tuple(value.shape)}.")
        return float(value)

    whole, again = loss(0, few), loss(0, few)
    parts = sum(loss(n, n + 1) for n in range(few)) / (few if problem.reduction == "mean" else 1)
    if not all(map(math.isfinite, (whole, again, parts))):
        raise MeasurementError(f"The loss of the first samples is {whole}; curvature needs a finite loss.")
    if not same_loss(whole, again):
        raise MeasurementError("The model gives another loss each time it runs; switch its randomness off first.")
    if not same_loss(whole, parts):
        raise MeasurementError(
            f"The loss of {few} samples together ({whole:.6g}) is not the {problem.reduction} of their losses "
            f"({parts:.6g}): either samples influence one another or the loss has another reduction than stated."
        )


def same_loss(a: float, b: float) -> bool:
    """Whether two losses agree to rounding, so that they can come from the same samples."""
    return abs(a - b) <= _SAME_LOSS * max(abs(a), abs(b), 1e-2)
