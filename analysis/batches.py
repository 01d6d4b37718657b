"""The forms in which data may come, reduced to one: an iterable of (inputs, targets) that can be read again.

A value of `inputs` belongs to the samples where it is a tensor with as many rows as there are targets. A tensor with
one row, a scalar, None and other plain values are meant for every sample and stay as they are in any part of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from analysis.errors import MeasurementError
from analysis.recording import recordable

_LABELS = ("labels", "label", "targets", "target")
"""Names of the targets in a batch that is a mapping, the first before any other."""

_KEPT_AT_MOST = 1 << 30
"""Bytes of a source that comes in another order each time, and so is read once and kept."""

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

Value = Tensor | bool | int | float | str | None
Inputs = tuple[Value, ...] | dict[str, Value]
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
        for batch in self.batches:
            chosen = slice((self.index - passed) % self.parts, None, self.parts)
            passed += batch_length(batch)
            yield picked(batch, chosen)


def regrouped(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of exactly `size`; what is left over at the end is dropped."""
    waiting: Batch | None = None
    for batch in batches:
        waiting = batch if waiting is None else joined(waiting, batch)
        while batch_length(waiting) >= size:
            yield sliced(waiting, 0, size)
            waiting = sliced(waiting, size, batch_length(waiting))


def joined(first: Batch, second: Batch) -> Batch:
    """The samples of both; raises `MeasurementError` where they have different shapes."""
    if batch_length(first) == 0 or batch_length(second) == 0:
        return second if batch_length(first) == 0 else first
    if not can_be_joined(first, second):
        raise MeasurementError("The samples of two batches differ in shape or type, so no batch can hold both.")
    lengths = batch_length(first), batch_length(second)

    def join(a: Value, b: Value) -> Value:
        return torch.cat([a, b]) if _of_samples(a, lengths[0]) and _of_samples(b, lengths[1]) else a  # type: ignore[list-item]

    targets = torch.cat([first[1], second[1]])
    if isinstance(first[0], dict) and isinstance(second[0], dict):
        return {name: join(x, second[0][name]) for name, x in first[0].items()}, targets
    return tuple(join(a, b) for a, b in zip(first[0], second[0], strict=True)), targets


def can_be_joined(first: Batch, second: Batch) -> bool:
    """Whether one batch can hold the samples of both: the same names, shapes and types, the same values for all."""

    def alike(a: Value, b: Value) -> bool:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return type(a) is type(b) and a == b
        if a.dtype != b.dtype or a.shape[1:] != b.shape[1:]:
            return False
        if _of_samples(a, batch_length(first)) and _of_samples(b, batch_length(second)):
            return True
        return a.shape == b.shape and torch.equal(a, b)

    one, other = _by_name(first[0]), _by_name(second[0])
    return (
        one.keys() == other.keys()
        and alike(first[1], second[1])
        and all(alike(x, other[key]) for key, x in one.items())
    )


def _by_name(inputs: Inputs) -> dict[Any, Value]:
    return inputs if isinstance(inputs, dict) else dict(enumerate(inputs))


def tensors(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, the targets last."""
    return [x for x in (*_by_name(batch[0]).values(), batch[1]) if isinstance(x, Tensor)]


def inspect_data(data: Any) -> Inspected:
    """Count the samples of `(inputs, targets)` or of an iterable of batches; an iterator is stored.

    So is a DataLoader that shuffles, which would give its samples in another order, or others, at each pass. Raises
    `MeasurementError` for data that have another form, unequal lengths or no samples.
    """
    batches: Iterable[Batch]
    pair = isinstance(data, list | tuple) and len(data) == 2 and any(isinstance(part, Tensor) for part in data)
    if isinstance(data, Mapping) or pair:
        batches = [_as_batch(data)]
    elif not isinstance(data, Iterable):
        raise MeasurementError(
            f"Data must be (inputs, targets) or an iterable of such batches, not {type(data).__name__}."
        )
    elif _shuffles(data):
        batches = _kept(data)
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


def _shuffles(data: Any) -> bool:
    """Whether it is a DataLoader that draws its samples at random."""
    if not isinstance(data, DataLoader):
        return False
    samplers = (data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None))
    return any(isinstance(sampler, _RANDOM) for sampler in samplers)


def _kept(data: Iterable[Any]) -> list[Batch]:
    """All batches, read once; raises `MeasurementError` where they are too many to keep."""
    found, size = [], 0
    for batch in map(_as_batch, data):
        size += sum(x.nbytes for x in tensors(batch))
        if size > _KEPT_AT_MOST:
            raise MeasurementError(
                f"The DataLoader shuffles, and its samples take more than {_KEPT_AT_MOST >> 30} GiB, too much to be "
                "read once and kept: make it with shuffle=False, so that every pass meets the same samples."
            )
        found.append(batch)
    return found


def _as_batch(batch: Any) -> Batch:
    if isinstance(batch, Mapping):
        held = [name for name in _LABELS if isinstance(batch.get(name), Tensor)]
        if len(held) != 1 and held[:1] != ["labels"]:
            raise MeasurementError(
                f"A batch that is a mapping must hold its targets as the tensor 'labels'; it holds {_names(batch)}."
            )
        batch = ({name: value for name, value in batch.items() if name != held[0]}, batch[held[0]])
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        what = f"one of {len(batch)}" if isinstance(batch, list | tuple) else f"a {type(batch).__name__} alone"
        raise MeasurementError(
            f"A batch must be (inputs, targets) with tensor targets, not {what}; several inputs go into a batch of "
            "their own, as in [(first, second, targets)]."
        )
    *inputs, targets = batch
    if not isinstance(targets, Tensor):
        raise MeasurementError(
            f"The targets of a batch must be one tensor with a row for every sample, not {type(targets).__name__}; of "
            "several, make one, such as columns side by side that the loss takes apart."
        )
    if targets.dim() == 0:
        raise MeasurementError("The targets of a batch must be a tensor with a row for every sample, not one number.")
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        named = dict(inputs[0])
        for name, value in named.items():
            _require_rows(repr(name), value, len(targets))
        return named, targets
    if len(inputs) == 1 and isinstance(inputs[0], list | tuple):
        inputs = list(inputs[0])
    for place, value in enumerate(inputs):
        _require_rows(f"number {place + 1}", value, len(targets))
    return tuple(inputs), targets


def _require_rows(which: str, value: Any, samples: int) -> None:
    if isinstance(value, Tensor) and (value.is_nested or value.layout != torch.strided):
        kind, remedy = ("nested", "pad it") if value.is_nested else ("sparse", "make it dense")
        raise MeasurementError(f"Input {which} of a batch is {kind}, and cannot be cut by samples: {remedy}.")
    if isinstance(value, Tensor):
        if value.dim() == 0 or len(value) in (1, samples):
            return
        got = f"shape {tuple(value.shape)}"
    elif value is None or isinstance(value, bool | int | float | str):
        return
    else:
        got = f"the type {type(value).__name__}"
    raise MeasurementError(
        f"Input {which} of a batch has {got}: every input must be a tensor with as many samples as the targets, "
        f"{samples}, or with one row, or a plain value for all of them."
    )


def _names(batch: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, batch)) or "nothing"


def batch_length(batch: Batch) -> int:
    """Number of samples."""
    return len(batch[1])


def sliced(batch: Batch, start: int, end: int) -> Batch:
    """Samples start..end of a batch, as views."""
    return picked(batch, slice(start, end))


def picked(batch: Batch, places: slice | Tensor) -> Batch:
    """The samples at `places`; what is meant for every sample stays."""
    samples = batch_length(batch)
    return _each(batch, lambda x: x[places] if _of_samples(x, samples) else x)


def moved(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on `device`, floating-point tensors in `dtype`, integer ones (class or token numbers) as they are."""

    def move(x: Tensor) -> Tensor:
        x = recordable(x.detach())
        other = dtype if x.is_floating_point() else dtype.to_complex() if x.is_complex() else x.dtype
        # Only to a GPU, whose later work waits for the copy: a CPU would read what has not yet arrived.
        return x.to(device=device, dtype=other, non_blocking=device.type == "cuda")

    return _each(batch, move)


def copied(batch: Batch) -> Batch:
    """The batch with tensors of its own, for what may change them in place."""
    return _each(batch, Tensor.clone)


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with `change` done to its tensors."""

    def changed(x: Value) -> Value:
        return change(x) if isinstance(x, Tensor) else x

    inputs, targets = batch
    if isinstance(inputs, dict):
        return {name: changed(x) for name, x in inputs.items()}, change(targets)
    return tuple(map(changed, inputs)), change(targets)


def _of_samples(value: Value, samples: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == samples
