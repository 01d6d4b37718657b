"""Losses that a model returns itself when it is given the targets, as Hugging Face's and nanoGPT's do.

Such a loss is a mean m_b over something in the batch. What it was divided by is said, not guessed:

    S_b = M_b m_b,      M_b: samples, labels that are not -100, or those after the first of each sequence

so that batches of unequal padding add up to one L. A wrong M_b shows where batches are compared with their parts.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from analysis.errors import MeasurementError

IGNORED = -100
"""The label of what is not counted, as torch has it."""

_ARGUMENTS = ("labels", "targets")


@dataclass(frozen=True)
class OwnLoss:
    """(outputs, targets) -> (S_b, M_b) from the mean that the outputs hold."""

    per: Literal["sample", "label", "next_label"]  # what the model takes the mean over

    def arguments(self, model: nn.Module, targets: Tensor) -> dict[str, Tensor]:
        """The targets by the name under which the model takes them."""
        parameters = inspect.signature(model.forward).parameters
        for name in _ARGUMENTS:
            if name in parameters:
                return {name: targets}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return {_ARGUMENTS[0]: targets}
        raise MeasurementError(
            f"{type(model).__name__} takes no argument called labels or targets, so it returns no loss of its own: "
            "name another loss."
        )

    def __call__(self, outputs: Any, targets: Tensor) -> tuple[Tensor, float]:
        """(S_b, M_b) of a batch; raises `MeasurementError` where the outputs hold no mean."""
        mean, count = _mean_in(outputs), self._count(targets)
        return (count * mean, count) if count else (mean.new_zeros(()), 0.0)  # a mean over nothing is no number

    def _count(self, targets: Tensor) -> float:
        if self.per == "sample":
            return len(targets)
        labels = targets[..., 1:] if self.per == "next_label" else targets
        return labels.numel() if labels.is_floating_point() else int((labels.long() != IGNORED).sum())


def _mean_in(outputs: Any) -> Tensor:
    """The scalar that is the loss: the outputs themselves, their `loss`, or the only scalar of a tuple."""
    if isinstance(outputs, Mapping):
        found = [outputs.get("loss")]
    elif isinstance(outputs, tuple):
        found = [one for one in outputs if isinstance(one, Tensor) and one.dim() == 0]
    else:
        found = [outputs if isinstance(outputs, Tensor) else getattr(outputs, "loss", None)]
    if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].dim() != 0:
        raise MeasurementError(
            f"The model returned {type(outputs).__name__} without one scalar loss in it, though it was given the "
            "targets: name another loss."
        )
    return found[0]


def logits_of(outputs: Any) -> Any:
    """The `logits` of outputs that are a mapping or an object with these; other outputs as they are."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return logits if isinstance(logits, Tensor) else outputs


def with_logits(outputs: Any, logits: Tensor) -> Any:
    """Outputs with other logits, for a loss by name: beside a mapping it takes targets (N,) for logits (N, 1) too."""
    return logits if isinstance(outputs, Tensor) else {"logits": logits}
