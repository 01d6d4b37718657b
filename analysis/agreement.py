"""Whether losses of the same samples agree to rounding, in whatever unit the loss is.

Rounding is a share of what is added up, the sizes of the samples' losses, which may cancel in their sum. Of a sample
that is fitted well next to nothing is left of numbers that are as large as ever, outputs and targets or the two sides
of a logarithm: there the loss is measured by what it is at other parameters, where nothing fits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.batches import Batch, batch_length, picked, sliced
from analysis.errors import MeasurementError
from analysis.model_copy import differentiable
from analysis.parametric_loss import Chunk, ParametricLoss

_SAME_LOSS = 1e-4  # relative; float32 losses of the same samples differ by far less, other samples by far more
_SAME_IN_DOUBLE = 1e-6  # the same in float64, though a part of the model may compute in float32
_SMALL_LOSS = 1e-2  # of the loss elsewhere; below it differences count as relative to that
_SCALE_OF_ZEROS = 0.1  # of the random point where all of a tensor is zero
_MANY = 64  # samples whose losses say how large those of all are

Point = Mapping[str, Tensor]
"""Values of parameters by name; those of the model stand for what is left out."""


@dataclass(frozen=True)
class Part:
    """The loss of some samples at some parameters."""

    total: float
    size: float  # |total|, added up over parts; at least what rounding is measured by
    normaliser: float
    samples: int
    told: bool  # whether the loss gave its normaliser itself

    def __add__(self, other: "Part") -> "Part":
        return Part(
            self.total + other.total,
            self.size + other.size,
            self.normaliser + other.normaliser,
            self.samples + other.samples,
            self.told,
        )

    @property
    def finite(self) -> bool:
        """Whether both numbers are."""
        return math.isfinite(self.total) and math.isfinite(self.normaliser)


def part_at(problem: ParametricLoss, batch: Batch, point: Point) -> Part:
    """The loss of a batch that has been moved, at a point."""
    with torch.no_grad():
        share = problem.share(batch, point)
    total, normaliser = float(share.total), float(share.normaliser)
    if normaliser < 0:
        raise MeasurementError(f"The normaliser that the loss returns is {normaliser:g}; it must not be negative.")
    return Part(total, abs(total), normaliser, batch_length(batch), share.told)


def parts_together(parts: Sequence[Part]) -> Part:
    """What they add up to."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def agree(problem: ParametricLoss, whole: Part, parts: Part, batch: Batch, point: Point) -> bool:
    """Whether the loss of a batch at a point, found in two ways, is the same to rounding."""
    if abs(whole.normaliser - parts.normaliser) > _closeness(problem) * parts.normaliser:
        return False
    return _same(problem, whole.total - parts.total, max(whole.size, parts.size), batch, parts.samples, point)


def same_loss(problem: ParametricLoss, chunk: Chunk, samples: int, one: float, other: float) -> bool:
    """Whether two values of the share of L of `samples`, a chunk among them, can come from the same ones."""
    totals = one / chunk.weight, other / chunk.weight
    size = max(map(abs, totals))
    return _same(problem, totals[0] - totals[1], size, (chunk.inputs, chunk.targets), samples, {})


def _same(problem: ParametricLoss, difference: float, size: float, batch: Batch, samples: int, point: Point) -> bool:
    """Whether a difference is rounding in a sum that is `size` large; its samples are looked at only if it must be."""
    close = _closeness(problem)
    if abs(difference) <= close * size:
        return True
    away = elsewhere_of(problem)
    opposite = {name: -values for name, values in away.items()}  # where what was right is wrong
    unfit = max(_mean_size(problem, batch, other) for other in (away, opposite))
    return abs(difference) <= close * samples * max(_mean_size(problem, batch, point), _SMALL_LOSS * unfit)


def _closeness(problem: ParametricLoss) -> float:
    return _SAME_IN_DOUBLE if problem.dtype == torch.float64 else _SAME_LOSS


def _mean_size(problem: ParametricLoss, batch: Batch, point: Point) -> float:
    """The mean over the samples of a batch, or over some of many, of the size of each one's loss."""
    some = picked(batch, slice(None, None, math.ceil(batch_length(batch) / _MANY)))
    count = batch_length(some)
    size = parts_together([part_at(problem, sliced(some, n, n + 1), point) for n in range(count)]).size
    return size / count if math.isfinite(size) else 0.0


def elsewhere_of(problem: ParametricLoss) -> Point:
    """A point as large as theta, half of it theta and half at random; the same for the same shapes."""
    generator = torch.Generator().manual_seed(0)
    point = {}
    for name, parameter in differentiable(problem.model):
        point[name] = away_from(parameter, generator)
    return point


def away_from(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Values as large as the parameter's, half of them its own and half at random."""
    scale = float(torch.linalg.vector_norm(parameter)) / math.sqrt(max(1, parameter.numel()))
    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
    return (parameter.detach() + (scale or _SCALE_OF_ZEROS) * noise) / math.sqrt(2)
