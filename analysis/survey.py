"""The divisor of L over all data: every piece of them is met, and compared with the parts that it is made of."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from analysis.agreement import Part, Point, agree, elsewhere_of, part_at, parts_together
from analysis.batches import Batch, batch_length, can_be_joined, joined, moved, sliced
from analysis.distributed import of_the_rank_before, summed_number
from analysis.errors import MeasurementError, UncountedError
from analysis.parametric_loss import Chunk, ParametricLoss
from analysis.refusals import FEW, MOVING_NORMALISER, no_sum


def survey(problem: ParametricLoss) -> float:
    """The divisor of L over all data; every chunk is compared with its parts, and joined to the end of the one before.

    It is done at a point away from the model's own: there a head of zeros or a saturated loss cannot hide how samples
    are weighed. Costs 2.5 forward passes without gradients.
    """
    points: tuple[Point, Point] = (elsewhere_of(problem), {})
    normaliser, seen = 0.0, 0
    chunks = replace(problem, chunk_size=max(FEW, problem.chunk_size)).chunks()
    with problem.passing():
        first = list(islice(chunks, 1))
    before = _end_of_the_rank_before(problem, first)
    with problem.passing():
        end = None if before is None else moved(before, problem.device, problem.dtype)
        for chunk in chain(first, chunks):
            batch = (chunk.inputs, chunk.targets)
            size = batch_length(batch)
            cut = size - max(1, size // 4)  # unequal parts: a mean of their means would pass for a mean
            pieces = [sliced(batch, a, b) for a, b in ((0, cut), (cut, size)) if a < b]
            part = _compared(problem, batch, pieces, end, points, seen)
            if part.told and not problem.loss.counts_targets:
                here = parts_together([part_at(problem, piece, {}) for piece in pieces])
                if here.finite and here.normaliser != part.normaliser:
                    raise MeasurementError(MOVING_NORMALISER)
            normaliser += part.normaliser
            seen += size
            end = sliced(batch, max(0, min(size - 2, cut)), size)  # of one sample, what is meant for all looks its own
    _refuse_others(problem, seen)
    return _divisor(problem, normaliser)


def _end_of_the_rank_before(problem: ParametricLoss, first: Sequence[Chunk]) -> Batch | None:
    """Two of its samples, on the CPU: ranks whose samples are alike, as of one class each, are compared too."""
    own = [tree_map(_on_the_cpu, sliced((chunk.inputs, chunk.targets), 0, 2)) for chunk in first]
    other = of_the_rank_before(own, problem.device, problem.distributed)
    return other[0] if other else None


def _on_the_cpu(x: Any) -> Any:
    return x.cpu().clone() if isinstance(x, Tensor) else x  # or all that the view is of would be sent


def weighed(problem: ParametricLoss) -> float:
    """The divisor of L over samples that were surveyed before; a forward pass, or none where each counts as one."""
    normaliser, seen = 0.0, 0
    with problem.passing():
        for chunk in problem.chunks():
            part = part_at(problem, (chunk.inputs, chunk.targets), {})
            if not part.told:
                return problem.samples if problem.reduction == "mean" else 1.0
            normaliser += part.normaliser
            seen += batch_length((chunk.inputs, chunk.targets))
    _refuse_others(problem, seen)
    return _divisor(problem, normaliser)


def _refuse_others(problem: ParametricLoss, seen: int) -> None:
    """Raise `MeasurementError` where a pass met more or fewer samples than there were at first."""
    met = round(summed_number(seen, problem.device, problem.distributed))
    if met != problem.samples:
        raise MeasurementError(
            f"The data gave {problem.samples} samples at first and {met} when they were read again: every pass must "
            "give the same (an iterator that is used up gives none)."
        )


def _divisor(problem: ParametricLoss, normaliser: float) -> float:
    if problem.reduction == "sum":
        return 1.0
    normaliser = summed_number(normaliser, problem.device, problem.distributed)
    if not normaliser > 0:
        raise UncountedError(
            f"The normaliser of the loss over {problem.samples} samples is {normaliser:g}: none of the targets count."
        )
    return normaliser


def _compared(
    problem: ParametricLoss,
    together: Batch,
    pieces: Sequence[Batch],
    end: Batch | None,
    points: Sequence[Point],
    seen: int,
) -> Part:
    """The loss of a batch after `seen` samples; its pieces must add up to it at the first point where it is finite.

    So must they beside the `end` of the batch before, unless that cannot run together with this one.
    """
    joins = end is not None and can_be_joined(end, together)
    parts = [end, *pieces] if end is not None and joins else list(pieces)
    whole = joined(end, together) if end is not None and joins else together
    for point in points:
        apart = [part_at(problem, piece, point) for piece in parts]
        try:
            at_once = part_at(problem, whole, point) if len(parts) > 1 else apart[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # as of packed sequences, which are to be sorted
            if not joins:
                raise
            joins, parts, whole, apart = False, list(pieces), together, apart[1:]
            at_once = part_at(problem, whole, point) if len(parts) > 1 else apart[0]
        if at_once.finite and parts_together(apart).finite:
            break
    else:
        raise MeasurementError(
            f"The loss of samples {seen + 1} to {seen + batch_length(together)} is {at_once.total}; curvature needs a "
            "finite loss."
        )
    if not agree(problem, at_once, parts_together(apart), whole, point):
        if not agree(problem, at_once, part_at(problem, whole, point), whole, point):
            raise MeasurementError("The model gives another loss each time it runs; switch its randomness off first.")
        raise no_sum(problem, at_once, parts_together(apart), seen + batch_length(together))
    own = parts_together(apart[-len(pieces) :])
    if end is not None and not joins and not own.told:
        raise MeasurementError(
            "The batches cannot be run together (their samples differ in shape, or have an order), so nothing shows "
            "whether the loss weighs all samples alike: let it return (sum, normaliser), or use a loss of torch.nn."
        )
    return own
