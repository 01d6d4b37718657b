"""Models that change their own weights when they run."""

import math

import torch
from torch import Tensor

from analysis.batches import Batch, moved, sliced
from analysis.errors import MeasurementError
from analysis.parametric_loss import ParametricLoss


def refuse_changed_weights(problem: ParametricLoss, first: Batch) -> None:
    """Raise `MeasurementError` for a model whose parameters are others once it has run, as by a rescaling in `forward`.

    What it computes is then no function of the parameters that it was given, nor has what it did to them a derivative.
    """
    one = moved(sliced(first, 0, 1), problem.device, problem.dtype)
    own = dict(problem.model.named_parameters())
    before = {name: _sums(parameter) for name, parameter in own.items()}
    leaves = problem.leaves()
    with torch.enable_grad():
        problem.share(one, leaves)
    with torch.no_grad():
        problem.share(one, {})
    changed = [name for name, leaf in leaves.items() if leaf.data_ptr() != problem.parameters[name].data_ptr()]
    changed += [name for name, sums in before.items() if not _equal(sums, _sums(own[name]))]
    if changed:
        raise MeasurementError(
            f"The model changes its weights ({changed[0]}) when it runs, so that its loss is no function of those that "
            "it has: take that out of forward, and do it once before."
        )


def _sums(parameter: Tensor) -> tuple[float, float]:
    values = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
    values = values.double()
    return values.sum().item(), values.square().sum().item()


def _equal(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True))
