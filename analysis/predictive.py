"""The distribution of targets that a model's outputs z stand for, and its Fisher information in z.

A loss -log p(y | z) makes of its outputs a distribution p(. | z), whose Fisher information is E_y [s s^T] with the
score s = d log p / dz, z the logits where the outputs are an object with these. For the usual losses that is

    cross-entropy (z logits, p = softmax z)                diag(p) - p p^T              = d^2 loss / dz^2
    binary cross-entropy (z logits, p = sigmoid z)         p (1 - p), entry by entry    = d^2 loss / dz^2
    squared error (a Gaussian of mean z and variance 1)    1                            = d^2 loss / dz^2 / 2

since (z - y)^2 is twice -log p, but for a constant. The targets themselves do not enter, so that smoothed labels and
class probabilities, which train the same distribution on other targets, leave it as it is. Targets that are not counted
(padding) have no part in it. The loss of the next token is the cross-entropy of all tokens but the first, each given
those before it as the data have them; the last token's logits predict nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.class_axes import are_distributions, class_axis
from analysis.errors import MeasurementError
from analysis.losses import SummedLoss, TorchLoss, cross_entropy, shift_of
from analysis.own_losses import OwnLoss

Information = Callable[[Tensor], Tensor]
"""The Fisher information of every sample at once, times u of the shape of the outputs."""

Predictive = Callable[[Tensor, Tensor], Information]
"""(outputs, targets) -> the Fisher information there."""

_WEIGHTS = ("weight", "pos_weight")
_IGNORED = -100  # the label that torch leaves out unless told otherwise


def predictive(loss: SummedLoss) -> Predictive:
    """The Fisher information of the loss's predictive distribution.

    Raises `MeasurementError` for a loss that is none of these, or that weighs classes.
    """
    function = loss.function
    if function is cross_entropy:
        return lambda z, y: _categorical(z, y, class_axis(z, y), _IGNORED)
    if shift_of(loss):
        return _of_next_tokens
    if not isinstance(function, TorchLoss):
        raise _no_distribution(loss)
    weights = [name for name in _WEIGHTS if name in function.options]
    if weights:
        raise MeasurementError(
            f"With a {weights[0]} {function.function.__name__} is no log-likelihood, so there is no Fisher matrix; "
            "take the Gauss-Newton matrix, or leave the weights out."
        )
    kinds: dict[Any, Predictive] = {
        F.cross_entropy: lambda z, y: _categorical(z, y, 1, function.options.get("ignore_index", _IGNORED)),
        F.binary_cross_entropy_with_logits: lambda z, y: _bernoulli(z),
        F.mse_loss: lambda z, y: lambda u: u,
    }
    if function.function not in kinds:
        raise _no_distribution(loss)
    return kinds[function.function]


def _categorical(z: Tensor, targets: Tensor, axis: int, ignored: int) -> Information:
    p = torch.softmax(z.detach(), axis)
    counted = torch.ones_like(z)
    if targets.is_floating_point():
        if not are_distributions(targets, axis):
            raise MeasurementError(
                "Targets that are class probabilities must add up to one for every sample; otherwise they weigh the "
                "samples, and the cross-entropy is no log-likelihood: take the Gauss-Newton matrix."
            )
    else:
        counted = (targets.long() != ignored).unsqueeze(axis).to(z)

    def information(u: Tensor) -> Tensor:
        pu = p * u
        return counted * (pu - p * pu.sum(axis, keepdim=True))

    return information


def _of_next_tokens(z: Tensor, targets: Tensor) -> Information:
    """For z (N, T, C) and the tokens themselves, (N, T)."""
    information = _categorical(z[:, :-1], targets[:, 1:], 2, _IGNORED)
    return lambda u: F.pad(information(u[:, :-1]), (0, 0, 0, 1))


def _bernoulli(z: Tensor) -> Information:
    p = torch.sigmoid(z.detach())
    variance = p * (1 - p)
    return lambda u: variance * u


def _no_distribution(loss: SummedLoss) -> MeasurementError:
    own = isinstance(loss.function, OwnLoss)
    return MeasurementError(
        f"Of the loss {loss.name} it is not known which distribution of targets the outputs stand for, so it has no "
        "Fisher matrix; cross_entropy and binary_cross_entropy of logits, next_token and mse have: take one of these"
        + (", or the Hessian." if own else ", or the Gauss-Newton or the empirical Fisher matrix.")
    )
