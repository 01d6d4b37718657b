"""The forms in which data may come, reduced to one: an iterable of (inputs, targets) that can be read again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from analysis.errors import MeasurementError

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
Batch = tuple[Inputs, Tensor]


@dataclass(frozen=True)
class Inspected:
    """Data after one pass over them."""

    batches: Iterable[Batch]
    samples: int
    first: Batch


class _Reread:
    """Batches of a re-iterable source, read anew at each pass."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Batch]:
        return map(_as_batch, self.source)


class Part:
    """Every `parts`-th sample of some batches from sample `index` on: the parts are disjoint and make the whole."""

    def __init__(self, batches: Iterable[Batch], index: int, parts: int) -> None:
        self.batches = batches
        self.index = index
        self.parts = parts

    def __iter__(self) -> Iterator[Batch]:
        passed = 0
        for inputs, targets in self.batches:
            chosen = slice((self.index - passed) % self.parts, None, self.parts)
            passed += len(targets)
            if isinstance(inputs, dict):
                yield {name: x[chosen] for name, x in inputs.items()}, targets[chosen]
            else:
                yield tuple(x[chosen] for x in inputs), targets[chosen]


def regrouped(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of exactly `size`; what is left over at the end is dropped."""
    waiting: Batch | None = None
    for batch in batches:
        waiting = batch if waiting is None else joined(waiting, batch)
        while batch_length(waiting) >= size:
            yield sliced(waiting, 0, size)
            waiting = sliced(waiting, size, batch_length(waiting))


def joined(first: Batch, second: Batch) -> Batch:
    """The samples of both."""
    targets = torch.cat([first[1], second[1]])
    if isinstance(first[0], dict) and isinstance(second[0], dict):
        return {name: torch.cat([first[0][name], second[0][name]]) for name in first[0]}, targets
    return tuple(torch.cat(pair) for pair in zip(first[0], second[0], strict=True)), targets  # type: ignore[arg-type]


def inspect_data(data: Any) -> Inspected:
    """Count the samples of `(inputs, targets)` or of an iterable of batches; an iterator is stored.

    Raises `MeasurementError` for data that have another form, unequal lengths or no samples.
    """
    batches: Iterable[Batch]
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor):
        batches = [_as_batch(data)]
    elif not isinstance(data, Iterable):
        raise MeasurementError(
            f"Data must be (inputs, targets) or an iterable of such batches, not {type(data).__name__}."
        )
    elif isinstance(data, Iterator | list | tuple):
        batches = [_as_batch(batch) for batch in data]
    else:
        batches = _Reread(data)
    samples, first = 0, None
    for batch in batches:
        samples += batch_length(batch)
        first = first if first is not None or batch_length(batch) == 0 else batch
    if first is None:
        raise MeasurementError("The data have no samples; curvature needs at least one.")
    return Inspected(batches, samples, first)


def _as_batch(batch: Any) -> Batch:
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not isinstance(batch[-1], Tensor):
        raise MeasurementError(f"A batch must be (inputs, targets) with tensor targets, not {type(batch).__name__}.")
    *inputs, targets = batch
    if len(inputs) == 1 and isinstance(inputs[0], dict):
        return dict(inputs[0]), targets
    if len(inputs) == 1 and isinstance(inputs[0], list | tuple):
        inputs = list(inputs[0])
    if any(not isinstance(x, Tensor) or x.dim() == 0 or len(x) != len(targets) for x in inputs):
        raise MeasurementError("Every input of a batch must be a tensor with as many samples as the targets.")
    return tuple(inputs), targets


def batch_length(batch: Batch) -> int:
    """Number of samples."""
    return len(batch[1])


def sliced(batch: Batch, start: int, end: int) -> Batch:
    """Samples start..end of a batch, as views."""
    inputs, targets = batch
    if isinstance(inputs, dict):
        return {name: x[start:end] for name, x in inputs.items()}, targets[start:end]
    return tuple(x[start:end] for x in inputs), targets[start:end]


def moved(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on `device`, floating-point tensors in `dtype`, integer ones (class or token numbers) as they are."""

    def move(x: Tensor) -> Tensor:
        return x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype, non_blocking=True)

    inputs, targets = batch
    if isinstance(inputs, dict):
        return {name: move(x) for name, x in inputs.items()}, move(targets)
    return tuple(map(move, inputs)), move(targets)
