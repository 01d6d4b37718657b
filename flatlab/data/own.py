"""Data that a function of the user's returns: tensors of any shape, with labels that are class numbers."""

import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from flatlab.arrays import tensor_of
from flatlab.data.images import ImageData, Split, channel_statistics
from flatlab.data.numbering import copied, warn_of_copies
from flatlab.data.samples import Reading
from flatlab.errors import UsageError, first_line
from flatlab.functions import import_function, require_let_run

MOST_CLASSES = 1_000_000
"""Of the logits of any model."""


def load_own(name: str, reading: Reading) -> ImageData:
    """Call `package.module:function` and take what it returns: `(train, test)`, each `(inputs, labels)`.

    Inputs are (n, ...): floats are taken as they are, in the run's precision; whole numbers are tokens, and stay whole
    numbers; uint8 of shape (n, channels, height, width) are images, normalised by the training split's mean and
    deviation. Labels are (n,) whole numbers from 0. The training split may have a third element, a dictionary of
    columns (n,), for the split by column. Arrays are taken for tensors.

    Raises:
        UsageError: the function was not named on the command line, fails, or returns something else.
    """
    require_let_run(name, "data set")
    reading.require_only(("column",), f"The data set {name}")
    function = import_function(name, "data set")
    try:
        returned = function()
    except Exception as error:
        raise UsageError(f"The data set {name}, called without arguments, raised {first_line(error)}.") from error
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        _refuse(name, "must return (train, test)")
    train, columns = _split(name, "training", returned[0])
    test, _ = _split(name, "test", returned[1])
    if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
        _refuse(name, f"returns {_kind(train.images)} for training and {_kind(test.images)} for testing: one is needed")
    classes = 1 + max(int(train.labels.max()), int(test.labels.max()))
    if classes > MOST_CLASSES:
        _refuse(name, f"has the label {classes - 1}, of {MOST_CLASSES - 1} at most: number the classes from 0")
    _look_at_classes(name, train.labels, classes)
    if train.images.dtype != torch.int64:  # a few tokens are the same ones again in any text
        copies = copied(train.images.numpy(), test.images.numpy())
        warn_of_copies(f"The data set {name}", "inputs", copies, len(test))
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if train.images.dtype == torch.uint8:
        measured = channel_statistics(train.images.numpy())
        mean, std = tuple(measured[0]), tuple(measured[1])
    if reading.column is not None:
        train = Split(train.images, train.labels, _owners(name, columns, reading.column, len(train)))
    return ImageData(name, train, test, classes, mean, std, augment=False)


def _look_at_classes(name: str, labels: Tensor, classes: int) -> None:
    """Refuse a single class, and warn of such as no training sample has: each has its logit, which nothing teaches."""
    counts = torch.bincount(labels, minlength=classes)
    if counts.count_nonzero() < 2:
        _refuse(name, f"has the one class {int(labels[0])}, and nothing to tell it from: give it two at least")
    missing = counts.eq(0).nonzero().flatten().tolist()
    if missing:
        warnings.warn(
            f"The data set {name} has no training sample of {len(missing)} of its {classes} classes (the first: "
            f"{missing[0]}), which have logits all the same: number the classes from 0, without gaps.",
            stacklevel=2,
        )


def _split(name: str, what: str, returned: Any) -> tuple[Split, Mapping[str, Any]]:
    if not isinstance(returned, tuple | list) or len(returned) not in (2, 3):
        _refuse(name, f"must return (inputs, labels) as its {what} split")
    inputs, labels = (_tensor(name, what, part) for part in returned[:2])
    columns = returned[2] if len(returned) == 3 else {}
    if not isinstance(columns, Mapping):
        _refuse(name, f"must return a dictionary of columns as the third part of its {what} split")
    if inputs.ndim < 2 or inputs.numel() == 0:
        _refuse(name, f"must return {what} inputs of shape (n, ...), not {tuple(inputs.shape)}")
    if labels.shape != (len(inputs),) or labels.is_floating_point() or labels.dtype == torch.bool:
        _refuse(name, f"must return {what} labels that are {len(inputs)} whole numbers, not {_kind(labels)}")
    if int(labels.min()) < 0:
        _refuse(name, f"has the {what} label {int(labels.min())}: classes are counted from 0")
    if inputs.is_floating_point() and not inputs.isfinite().all():
        _refuse(name, f"has {what} inputs that are not finite")
    if (inputs.dtype == torch.uint8 and inputs.ndim != 4) or inputs.dtype == torch.bool:
        inputs = inputs.long()
    return Split(inputs.contiguous(), labels.long().contiguous()), columns


def _tensor(name: str, what: str, part: Any) -> Tensor:
    """What is returned as a tensor of float32, float64, int64, uint8 or bool, with which torch can do everything."""
    if np.ma.is_masked(part):
        _refuse(name, f"returns {what} arrays of which some values are masked: leave those samples out, or fill them")
    if isinstance(part, np.ndarray):
        try:
            part = tensor_of(part)
        except TypeError:
            _refuse(name, f"returns {what} arrays of {part.dtype}: numbers are needed")
    if not isinstance(part, Tensor):
        _refuse(name, f"must return tensors, but returns a {type(part).__name__} in its {what} split")
    if part.is_nested or part.layout != torch.strided or part.is_quantized or part.is_complex() or part.is_meta:
        _refuse(name, f"must return dense tensors of real numbers, not {_kind(part)}")
    found: Tensor = part.detach().cpu()
    if found.dtype in (torch.float64, torch.uint8, torch.bool):
        return found
    try:
        whole = found.float() if found.is_floating_point() else found.long()
    except (RuntimeError, NotImplementedError):  # of numbers packed into parts of a byte
        _refuse(name, f"returns {what} tensors of {_kind(found)}: numbers of whole bytes are needed")
    if found.dtype == torch.uint64 and bool((whole < 0).any()):
        _refuse(name, f"has {what} numbers from 2^63 on: whole numbers are kept as int64")
    return whole


def _owners(name: str, columns: Mapping[str, Any], column: str, samples: int) -> Tensor:
    if column not in columns:
        there = ", ".join(map(str, columns)) or "none"
        _refuse(name, f"returns no column {column!r} with its training split (it has: {there})")
    held = columns[column]
    try:
        listed = held.tolist() if isinstance(held, Tensor) else held
        values = np.asarray(listed, dtype=object)  # as they are: lists of names and numbers would all become names
    except Exception as error:  # whatever a class of somebody's raises
        _refuse(name, f"returns as its column {column!r} what cannot be read, {first_line(error)}")
    if values.shape != (samples,):
        _refuse(name, f"must return {samples} values as its column {column!r}, not {values.shape}")
    for place, value in enumerate(values):
        if value is None or not _is_itself(value):
            _refuse(name, f"has no value in its column {column!r} for training sample {place}: each needs its client")
    try:
        numbers = np.unique(values, return_inverse=True)[1]
    except Exception:  # two values that cannot be compared
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        _refuse(name, f"has values in its column {column!r} that have no order ({kinds}): use names, or whole numbers")
    return torch.from_numpy(numbers.astype(np.int64))


def _is_itself(value: Any) -> bool:
    """False of what stands for a missing value: not-a-number, pandas' NA and NaT."""
    try:
        return bool(value == value)
    except Exception:  # NA is neither equal nor unequal to anything
        return False


def _kind(tensor: Tensor) -> str:
    if tensor.is_nested:
        return "nested ones"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _refuse(name: str, what: str) -> NoReturn:
    raise UsageError(f"The data set {name} {what}.")
