"""Whether a model computes the same when other tensors stand in for its parameters, as they do in all that is measured.

A model may look at what it is given: make parameters anew of it, keep what it computed of it, ask what kind it is.
"""

import torch
from torch import Tensor

from analysis.batches import Batch, moved, sliced
from analysis.derivatives import gradients
from analysis.errors import MeasurementError
from analysis.members import named_parameters
from analysis.model_copy import as_real
from analysis.parametric_loss import ParametricLoss

_SAME = 1e-3  # of themselves; the two differ by rounding alone
_NOTHING = 1e-5  # of the whole gradient: below it a parameter's own is rounding


def refuse_other_than_parameters(problem: ParametricLoss, first: Batch) -> None:
    """Compare loss and gradient of one sample by stand-ins with those by the parameters of a copy of the model.

    Raises `MeasurementError` where they differ. A model that does not run with parameters of its own here is not
    decided.
    """
    one = moved(sliced(first, 0, 1), problem.device, problem.dtype)
    plain = problem.of_a_copy()
    own = dict(named_parameters(plain.model))
    for name in problem.parameters:
        own[name].requires_grad_()
    leaves = problem.leaves()
    total = problem.share(one, leaves).total
    try:
        plainly = plain.share(one, {}).total
        known = gradients([plainly], [own[name] for name in leaves])
    except (RuntimeError, TypeError):
        return
    found = gradients([total], list(leaves.values()))
    expected = [as_real(piece) for piece in known]
    size = _norm(expected)
    if _apart(total.detach(), plainly.detach()) or any(
        _apart(a, b) and max(_norm([a]), _norm([b])) > _NOTHING * size for a, b in zip(found, expected, strict=True)
    ):
        raise MeasurementError(
            "The model computes something else where other tensors stand in for its parameters, which no derivative "
            "here can follow: it makes new parameters of them, asks whether they require a gradient, or holds what it "
            "computed of them before. Let it compute with its parameters as they are."
        )


def _apart(one: Tensor, other: Tensor) -> bool:
    return _norm([one - other]) > _SAME * max(_norm([one]), _norm([other]))


def _norm(pieces: list[Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(piece.double()) for piece in pieces]).norm())
