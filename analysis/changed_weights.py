"""Models that change their own weights, or the buffers that they compute with, when they run."""

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from analysis.agreement import Part, agree, elsewhere_of, part_at
from analysis.batches import Batch, batch_length, moved, sliced
from analysis.errors import MeasurementError, some
from analysis.members import named_parameters
from analysis.parametric_loss import ParametricLoss

_FEW = 4

P = TypeVar("P", bound=ParametricLoss)


def unchanged_by_runs(problem: P, first: Batch) -> P:
    """The problem, whose every run starts from the same buffers, also those that the model writes to.

    Raises `MeasurementError` for a model whose parameters are others once it has run, as by a rescaling in `forward`:
    what it computes is then no function of the parameters that it was given, nor has what it did to them a derivative.
    Also where what one run wrote to buffers changes the loss of the next, as where the first run sets a scale by its
    samples: there is no one L then.
    """
    one = moved(sliced(first, 0, 1), problem.device, problem.dtype)
    held = problem.state.tensors()
    clean = [tensor.detach().clone() for _, tensor in held]
    part_at(problem, one, elsewhere_of(problem))  # that of a sample alone at its own parameters may be the right one
    _refuse_changed_weights(problem, one)
    written = [(place, own) for (place, tensor), own in zip(held, clean, strict=True) if not _same(tensor, own)]
    if not written:
        return problem
    count = batch_length(first)
    last = moved(sliced(first, max(0, count - _FEW), count), problem.device, problem.dtype)
    dirty = replace(problem, state=replace(problem.state, renewed=[place for place, _ in written]))
    after = part_at(dirty, last, {})
    renewed = replace(problem, state=problem.state.renewing(written))
    by_itself, again = part_at(renewed, last, {}), part_at(renewed, last, {})
    if _differ(renewed, by_itself, after, last) and not _differ(renewed, by_itself, again, last):
        names = some(dict.fromkeys(str(name) for (_, name), _ in written))
        raise MeasurementError(
            f"The model writes to what it computes with ({names}) when it runs, so that its loss depends on what it "
            "was run on before: run it once on data before measuring if that sets this for good, or let it write in "
            "training alone."
        )
    return renewed


def _refuse_changed_weights(problem: ParametricLoss, one: Batch) -> None:
    own = dict(named_parameters(problem.model))
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


def _differ(problem: ParametricLoss, one: Part, other: Part, batch: Batch) -> bool:
    return one.finite and other.finite and not agree(problem, one, other, batch, {})


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, one of which may have been given another shape since."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _sums(parameter: Tensor) -> tuple[float, float]:
    values = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
    values = values.double()
    return values.sum().item(), values.square().sum().item()


def _equal(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True))
