"""Which dimension holds the classes, for the cross-entropy by name: the second or the last, as targets show."""

from torch import Tensor

from analysis.errors import MeasurementError

_SUM_TO_ONE = 1e-4  # but for rounding


def are_distributions(targets: Tensor, axis: int) -> bool:
    """Whether floating targets add up to one along the classes' `axis`, so that they are probabilities of these."""
    return targets.dim() > axis and bool(((targets.sum(axis) - 1).abs() <= _SUM_TO_ONE).all())


def distribution_axes(targets: Tensor) -> list[int]:
    """The dimensions along which floating targets are distributions, of the second and the last."""
    return [axis for axis in sorted({1, max(1, targets.dim() - 1)}) if are_distributions(targets, axis)]


def class_axis(outputs: Tensor, targets: Tensor) -> int:
    """The dimension of the classes in what "cross_entropy" takes: the second, or the last.

    Beside labels (N, T) it is the one that these lack, beside probabilities that along which they add up to one. Raises
    `MeasurementError` where that is either or, for probabilities, neither.
    """
    last = outputs.dim() - 1
    if last > 1 and targets.is_floating_point() and targets.shape == outputs.shape:
        axes = distribution_axes(targets)
        found = "along either" if axes else "along neither"
        seen = f"Targets of shape {tuple(targets.shape)} that add up to one {found} of the second and last dimension"
    elif not targets.is_floating_point() and last == targets.dim() > 1:
        axes = [axis for axis in (1, last) if outputs.shape[:axis] + outputs.shape[axis + 1 :] == targets.shape] or [1]
        seen = f"Outputs of shape {tuple(outputs.shape)}"
    else:
        axes = [1]
    if len(axes) != 1:
        raise MeasurementError(
            f"{seen} do not say which dimension holds the classes: pass torch.nn.CrossEntropyLoss() if it is the "
            "second, or a function that moves it there."
        )
    return axes[0]
